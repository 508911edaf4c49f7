//! Chat templates written to exhaust memory, stack or time: each is an error, or a text of bounded size.

use std::time::{Duration, Instant};

use int8_nn::{ChatTemplate, Message};

/// The answer to a template, and the time it took.
fn render(text: &str) -> (Result<String, String>, Duration) {
    let begin = Instant::now();
    let found = ChatTemplate::new("hostile", text, vec![("eos_token".to_owned(), "</s>".to_owned())])
        .and_then(|template| template.render(&[Message::new("user", "x".repeat(1000))], true))
        .map_err(|error| error.to_string());
    (found, begin.elapsed())
}

/// Templates that would take a machine's memory, its stack or for ever.
fn bombs() -> Vec<(&'static str, String)> {
    let doubling = |set: &str, print: &str| {
        format!("{{% set ns = namespace(x='a') %}}{{% for i in range(60) %}}{set}{{% endfor %}}{print}")
    };
    let chain = |term: &str, count: usize| format!("{{{{ {} }}}}", vec![term; count].join("+"));
    let mut bombs = vec![
        ("a text doubled", doubling("{% set ns.x = ns.x ~ ns.x %}", "{{ ns.x }}")),
        ("a text doubled by +", doubling("{% set ns.x = ns.x + ns.x %}", "{{ ns.x|length }}")),
        ("a text doubled by *", doubling("{% set ns.x = ns.x * 2 %}", "")),
        ("a text doubled by a list", doubling("{% set ns.x = [ns.x, ns.x]|join %}", "")),
        ("a text doubled by its method", doubling("{% set ns.x = ns.x.join([ns.x, ns.x, ns.x]) %}", "")),
        ("a text doubled by replacing", doubling("{% set ns.x = ns.x|replace('a', 'aa') %}", "")),
        ("a text doubled by the method", doubling("{% set ns.x = ns.x.replace('a', 'aa') %}", "")),
        ("a text doubled in a block", doubling("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}", "")),
        ("a text doubled by a format", doubling("{% set ns.x = '%s%s' % (ns.x, ns.x) %}", "")),
        ("a text doubled by the filter", doubling("{% set ns.x = '%s%s'|format(ns.x, ns.x) %}", "")),
        ("a text doubled by the method", doubling("{% set ns.x = '{}{}'.format(ns.x, ns.x) %}", "")),
        ("a text doubled by JSON", doubling("{% set ns.x = [ns.x, ns.x]|tojson %}", "")),
        ("a text doubled by pprint", doubling("{% set ns.x = [ns.x, ns.x]|pprint %}", "")),
        ("a text doubled by escaping", doubling("{% set ns.x = (ns.x ~ '&<')|e|string %}{% set ns.x = ns.x ~ ns.x %}", "")),
        ("a list doubled", doubling("{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x }}")),
        ("a list doubled and compared", doubling("{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x == ns.x }}")),
        ("a list doubled and searched", doubling("{% set ns.x = [ns.x, ns.x] %}", "{{ 1 in ns.x }}")),
        ("a map doubled as JSON", doubling("{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "{{ ns.x|tojson }}")),
        ("a tuple doubled and sorted", doubling("{% set ns.x = (ns.x, ns.x) %}", "{{ [ns.x, ns.x]|sort }}")),
        ("a list added to itself", doubling("{% set ns.x = (ns.x|list) + (ns.x|list) %}", "{{ ns.x|length }}")),
        ("arguments doubled", "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n - 1) }}{% endif %}{{ x }}{% endmacro %}{{ f('abcdefgh', 60) }}".to_owned()),
        ("calls doubled", "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}".to_owned()),
        ("a namespace in itself", "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".to_owned()),
        ("a namespace in a list in itself", "{% set ns = namespace() %}{% set ns.x = [{'a': ns}] %}{{ ns|tojson }}".to_owned()),
        ("two namespaces in each other", "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a == b }}".to_owned()),
        ("namespaces in a chain", "{% set o = namespace(x=1) %}{% for i in range(90000) %}{% set o = namespace(x=o) %}{{ o }}{% endfor %}".to_owned()),
        ("lists in a chain", doubling("{% for j in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}", "{{ ns.x }}")),
        ("a namespace that grows in a list", "{% set ns = namespace(x='') %}{% set l = [ns]*10000 %}{% set ns.x = 'a'*1000000 %}{{ l ~ l }}".to_owned()),
        ("a wide number", "{{ '%4000000000d' % 1 }}".to_owned()),
        ("a precise number", "{{ '%.4000000000f' % 1.5 }}".to_owned()),
        ("a width among the values", "{{ '%*d' % (4000000000, 1) }}".to_owned()),
        ("a wide number by the filter", "{{ '%4000000000d'|format(1) }}".to_owned()),
        ("a wide name", "{{ '%(a)4000000000s' % {'a': 1} }}".to_owned()),
        ("a wide placeholder", "{{ '{:4000000000}'.format(1) }}".to_owned()),
        ("a placeholder's width", "{{ '{:{}}'.format(1, 4000000000) }}".to_owned()),
        ("a named width", "{{ '{:{w}d}'.format(1, w=4000000000) }}".to_owned()),
        ("a wide indentation", "{{ 'a\nb'|indent(4000000000) }}".to_owned()),
        ("a wide indentation by name", "{{ 'a\nb'|indent(width=4000000000) }}".to_owned()),
        ("a wide indentation by a text", "{{ ('\n'*100000)|indent('a'*100000) }}".to_owned()),
        ("wide JSON", "{{ [1,[2]]|tojson(indent=4000000000)|length }}{{ 'a'*4000000000 }}".to_owned()),
        ("a text repeated", "{{ 'abc' * 4000000000 }}".to_owned()),
        ("a list repeated", "{{ ([1] * 90000000)|list|length }}".to_owned()),
        ("a list repeated, printed", "{{ [1] * 90000000 }}".to_owned()),
        ("batches of many", "{{ [1]|batch(4000000000, 'x')|list }}".to_owned()),
        ("many slices", "{{ [1]|slice(4000000000)|list }}".to_owned()),
        ("characters of a long text", "{{ ('a'*16000000)|list|length }}".to_owned()),
        ("characters in a loop", "{% for c in 'a'*16000000 %}{% endfor %}".to_owned()),
        ("lines of a long text", "{{ ('\n'*16000000).splitlines()|length }}".to_owned()),
        ("pieces of a long text", "{{ ('a '*8000000).split()|length }}".to_owned()),
        ("a filter for each", "{% set l = ['a'*1000]*10000 %}{{ l|map('replace', 'a', 'b'*10000)|list|length }}".to_owned()),
        ("a join for each", "{% set l = ['a'*1000]*10000 %}{{ l|map('join', 'b'*10000)|list|length }}".to_owned()),
        ("a format for each", "{% set l = ['%9999d']*400000 %}{{ l|map('format', 1)|list|length }}".to_owned()),
        ("sums of lists", "{% set l = [[1]*1000]*1000 %}{% for i in range(1000) %}{{ l|sum(start=[])|length }}{% endfor %}".to_owned()),
        ("three loops", "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}{% endfor %}".to_owned()),
        ("a text of the template in a loop", format!("{{% for a in range(90000) %}}{}{{% endfor %}}", "text ".repeat(40_000))),
        ("the same in a block", format!("{{% set x %}}{{% for a in range(90000) %}}{}{{% endfor %}}{{% endset %}}", "text ".repeat(40_000))),
        ("a macro in itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned()),
        ("a loop in itself", "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}".to_owned()),
        ("a call block in itself", "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}".to_owned()),
        ("many ranges", "{% for i in range(100000) %}{% set x = range(100000)|list %}{% endfor %}".to_owned()),
        ("unpacked arguments", "{% macro f() %}{% endmacro %}{{ f(*range(100000)) }}".to_owned()),
        ("200 k terms", chain("a", 200_000)),
        ("100 k terms", chain("1", 100_000)),
        ("100 k maps", chain("{'a':{}}", 28_000)),
        ("a text of names", format!("{{{{ {} }}}}", "a.".repeat(100_000) + "a")),
        ("a text of filters", format!("{{{{ a{} }}}}", "|e".repeat(100_000))),
        ("a text of calls", format!("{{{{ a{} }}}}", "()".repeat(100_000))),
        ("a text of indexes", format!("{{{{ a{} }}}}", "[0]".repeat(80_000))),
        ("a text of brackets", format!("{{{{ {}{} }}}}", "(".repeat(100_000), ")".repeat(100_000))),
        ("a text of lists", format!("{{{{ {}{} }}}}", "[".repeat(100_000), "]".repeat(100_000))),
        ("a text of nots", format!("{{{{ {} a }}}}", "not ".repeat(60_000))),
        ("a text of signs", format!("{{{{ {}1 }}}}", "-".repeat(200_000))),
        ("a text of ifs", format!("{{{{ {}1 }}}}", "1 if 0 else ".repeat(20_000))),
        ("a text of comparisons", format!("{{{{ 1{} }}}}", "<2".repeat(100_000))),
        ("a text of powers", format!("{{{{ 2{} }}}}", "**2".repeat(80_000))),
        ("a text of dots", format!("{{{{ a{} }}}}", "~a".repeat(120_000))),
        ("nested blocks", format!("{}{}", "{% if 1 %}".repeat(12_000), "{% endif %}".repeat(12_000))),
        ("nested loops", format!("{}{}", "{% for i in a %}".repeat(8_000), "{% endfor %}".repeat(8_000))),
        ("elifs", format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(20_000))),
        ("a megabyte", "a".repeat(1 << 20)),
        ("an exception with a megabyte", "{{ raise_exception('a'*1000000) }}".to_owned()),
        ("an unknown template with a megabyte", "{% include 'a'*1000000 %}".to_owned()),
        ("a large power", "{{ 9**9**9**9 }}".to_owned()),
        ("a large shift", "{{ 10**4000000000 }}".to_owned()),
        ("a large number", format!("{{{{ {} }}}}", "9".repeat(200_000))),
        ("the state", "{{ debug() }}{% for i in range(3000) %}{{ debug() }}{% endfor %}".to_owned()),
    ];
    // The longest tags that are read: the deepest trees of the parser.
    for (name, repeated, end) in [
        ("longest sum", "a+", "a"),
        ("longest text", "a~", "a"),
        ("longest names", "a.", "a"),
        ("longest chain of filters", "|e", ""),
        ("longest comparison", "1<", "2"),
        ("longest power", "2**", "2"),
        ("longest and", "1and ", "1"),
        ("longest not", "not ", "a"),
        ("longest sign", "-", "1"),
        ("longest if", "1if 0else ", "1"),
        ("longest call", "()", ""),
        ("longest index", "[0]", ""),
        ("longest list", "[", ""),
        ("longest brackets", "(", ""),
    ] {
        let text = repeated.repeat(8_000 / repeated.len());
        bombs.push((name, format!("{{{{ {text}{end} }}}}")));
        bombs.push((name, format!("{{{{ a{text}{end} }}}}")));
    }
    bombs
}

/// Peak resident memory of this process, in bytes.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

#[test]
fn bombs_are_errors_or_small() {
    let mut wrong = Vec::new();
    for (name, text) in bombs() {
        let (found, time) = render(&text);
        // Of all bombs so far.
        let memory = peak().unwrap_or(0);
        let length = found.as_ref().map_or_else(String::len, String::len);
        let is_error = found.is_err();
        if std::env::var_os("INT8_SHOW").is_some() {
            let shown: String = found.unwrap_or_else(|error| error).chars().take(100).collect();
            println!("{name}: {time:?}, {} MB, {length} bytes, error {is_error}: {shown}", memory >> 20);
        }
        // An error is short whatever it quotes.
        let most = if is_error { 1_000 } else { 64 << 20 };
        if time > Duration::from_secs(10) || memory > 1 << 30 || length > most {
            wrong.push(format!("{name}: {time:?}, {memory} bytes of memory, {length} bytes of text"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Bounds that honest templates do not meet.
#[test]
fn long_conversations_are_rendered() {
    let text = "{% set ns = namespace(out='') %}{% for m in messages %}{% if loop.index0 > 0 and messages[loop.index0 - 1].role == m.role %}\
        {{ raise_exception('roles') }}{% endif %}{% set ns.out = ns.out ~ '<' ~ m.role ~ '>' ~ m.content|trim ~ eos_token %}\
        {% endfor %}{{ ns.out }}{% if messages|length > 3 %}{% for m in messages[1:] %}{{ m.content.split('\\n')|first }}{% endfor %}{% endif %}";
    let template = ChatTemplate::new("honest", text, vec![("eos_token".to_owned(), "</s>".to_owned())])
        .expect("a template");
    let said = "Words of a long answer, some\nof them on a second line. ".repeat(20);
    let messages: Vec<Message> =
        (0..300).map(|turn| Message::new(["user", "assistant"][turn % 2], said.as_str())).collect();
    let found = template.render(&messages, true).expect("a text");
    assert!(found.len() > 300 * said.len(), "{}", found.len());
}
