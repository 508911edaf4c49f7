//! Jinja templates of strangers, rendered within bounds: size of the template and of its tags, number of instructions, size and
//! depth of every value, bytes made in all.
//!
//! A template engine bounds the number of instructions, not what one of them makes: `x ~ x` in a loop doubles a text with each,
//! and a list that holds a list twice prints exponentially. So the compiled instructions are rewritten: before each that reads
//! or copies operands of any size, and after each that makes a value, stands the call of a check. Parsing and rendering run on a
//! thread with a stack for the deepest expression that a tag can hold.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minijinja::machinery::{self, Instruction, Instructions};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Object, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, filters};

/// Most bytes of a template: ten times the longest of models in use.
const MOST_BYTES: usize = 256 << 10;

/// Most bytes of a tag outside its texts: an operator takes two, and each is a level of the expression's tree, whose constants the
/// parser looks for at each level. So the time stays short, which grows with the square, and the deepest tree fits [`STACK`].
const MOST_TAG_BYTES: usize = 8 << 10;

/// Bytes of the stack: 4 k levels of an expression at 4 kB (unoptimised code), four times. Reserved, not touched.
const STACK: usize = 64 << 20;

/// Most instructions, checks included; honest templates take some hundred a message.
const FUEL: u64 = 5_000_000;

/// Largest weight of a value: sixteen times a conversation of 1 MB.
const MOST_WEIGHT: u64 = 16 << 20;

/// Most nested lists and maps: a conversation has four levels.
const MOST_DEPTH: u32 = 64;

/// Weights of all values made, together: no more memory can be in use at once.
const MOST_MADE: u64 = 448 << 20;

/// Weights of all operands read, together: bounds the time of comparisons and searches.
const MOST_READ: u64 = 1 << 30;

/// Longest time of a rendering: the bounds above are reached in a second or two, on a busy machine later.
const MOST_TIME: Duration = Duration::from_secs(5);

/// Weight of a value beside the bytes of its text: that of its place in a list.
const NODE: u64 = 32;

/// Largest width or count that a template gives a filter or a format.
const MOST_WIDTH: u64 = 9_999;

thread_local! {
    /// Weights of the values made and read by the rendering, which has the thread for itself.
    static SPENT: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    /// When it began.
    static BEGIN: Instant = Instant::now();
}

/// The environment of a template: the filters and functions of Jinja, those that multiply their operands checked.
pub(crate) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    // It prints the whole state.
    environment.remove_global("debug");
    for check in Check::ALL {
        environment.add_global(check.name(), Value::from_object(check));
    }
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        check_method(value, method, arguments)?;
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
    });
    environment.add_filter("replace", |state: &mut State<'_, '_>, text: String, from: String, to: String| {
        replaced(&text, &from, &to)?;
        let values = [text, from, to].map(Value::from);
        let [text, from, to] = values;
        call(state, filters::replace, &[text, from, to])
    });
    environment.add_filter("join", |state: &mut State<'_, '_>, arguments: Rest<Value>| {
        joined(&arguments)?;
        call(state, filters::join, &arguments)
    });
    environment.add_filter("indent", |state: &mut State<'_, '_>, arguments: Rest<Value>| {
        indented(&arguments)?;
        call(state, filters::indent, &arguments)
    });
    environment.add_filter("format", |state: &mut State<'_, '_>, arguments: Rest<Value>| {
        if let Some((format, values)) = arguments.split_first() {
            formatted(format, values, '%')?;
        }
        call(state, filters::format, &arguments)
    });
    environment.add_filter("list", |state: &mut State<'_, '_>, arguments: Rest<Value>| {
        for value in arguments.iter() {
            spelled(value)?;
        }
        call(state, filters::list, &arguments)
    });
    environment.add_filter("batch", |state: &mut State<'_, '_>, arguments: Rest<Value>| {
        counted(&arguments)?;
        call(state, filters::batch, &arguments)
    });
    environment.add_filter("slice", |state: &mut State<'_, '_>, arguments: Rest<Value>| {
        counted(&arguments)?;
        call(state, filters::slice, &arguments)
    });
    environment.add_filter("tojson", to_json);
    Ok(environment)
}

/// Parses `text`.
///
/// # Errors
/// When it is too long or no template.
pub(crate) fn check(environment: &Environment<'static>, text: &str) -> Result<(), Error> {
    check_size(text)?;
    on_a_thread(|| environment.template_from_str(text).map(|_| ()))
}

/// The text that a template makes of a context.
///
/// # Errors
/// When it fails or leaves its bounds.
pub(crate) fn render(
    environment: &Environment<'static>,
    text: &str,
    context: impl FnOnce() -> Value + Send,
) -> Result<String, Error> {
    check_size(text)?;
    on_a_thread(|| {
        let template = environment.template_from_str(text)?;
        let compiled = machinery::get_compiled_template(&template);
        let instructions = checked(&compiled.instructions)?;
        let blocks = compiled.blocks.iter();
        let blocks: BTreeMap<_, _> =
            blocks.map(|(name, block)| Ok((*name, checked(block)?))).collect::<Result<_, Error>>()?;
        let mut out = String::new();
        let mut output = machinery::make_string_output(&mut out);
        machinery::eval(environment, &instructions, context(), &blocks, &mut output, AutoEscape::None)?;
        Ok(out)
    })
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".to_owned()).stack_size(STACK);
        let thread = thread.spawn_scoped(scope, work).map_err(|error| refused(error.to_string()))?;
        thread.join().unwrap_or_else(|_| Err(refused("the template engine failed")))
    })
}

fn refused(problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// Refuses a template of too many bytes, in all or in one tag.
fn check_size(text: &str) -> Result<(), Error> {
    if text.len() > MOST_BYTES {
        return Err(refused(format!("it has {} bytes; at most {MOST_BYTES} are read", text.len())));
    }
    let (mut inside, mut quote, mut escaped, mut length, mut previous) = (false, None, false, 0_usize, b' ');
    // Open brackets: a tag ends outside of them.
    let mut open = 0_i64;
    for &byte in text.as_bytes() {
        match (inside, quote) {
            (false, _) => {
                inside = previous == b'{' && matches!(byte, b'{' | b'%');
                (length, open) = (0, 0);
            }
            (true, Some(end)) => {
                if !escaped && byte == end {
                    quote = None;
                }
                escaped = !escaped && byte == b'\\';
            }
            (true, None) => {
                length += 1;
                match byte {
                    b'"' | b'\'' => (quote, escaped) = (Some(byte), false),
                    b'}' if open <= 0 && matches!(previous, b'}' | b'%') => inside = false,
                    b'(' | b'[' | b'{' => open += 1,
                    b')' | b']' | b'}' => open -= 1,
                    _ => {}
                }
            }
        }
        if length > MOST_TAG_BYTES {
            return Err(refused(format!("a tag has more than {MOST_TAG_BYTES} bytes outside its texts")));
        }
        previous = byte;
    }
    Ok(())
}

/// The instructions with checks between them.
fn checked<'source>(original: &Instructions<'source>) -> Result<Instructions<'source>, Error> {
    use Instruction as I;
    // Where each instruction's group begins, for jumps.
    let (mut groups, mut places) = (Vec::new(), Vec::new());
    let mut place = 0_u32;
    let mut index = 0;
    while let Some(instruction) = original.get(index) {
        let mut group = Vec::with_capacity(4);
        let before = |group: &mut Vec<_>, check: Check, operands: u16| {
            group.push(I::CallFunction(check.name(), Some(operands)));
            group.push(I::UnpackList(usize::from(operands)));
        };
        match instruction {
            I::Add | I::StringConcat => before(&mut group, Check::Operands, 2),
            I::Eq | I::Ne | I::Lt | I::Lte | I::Gt | I::Gte | I::In | I::CompareAndPreserve(_) => {
                before(&mut group, Check::Operands, 2);
            }
            I::Mul => before(&mut group, Check::Repeat, 2),
            I::SetAttr(_) => before(&mut group, Check::Assign, 2),
            I::PushLoop(_) => before(&mut group, Check::Loop, 1),
            I::Emit => before(&mut group, Check::Emit, 1),
            I::EmitRaw(text) => {
                group.push(I::LoadConst(Value::from(text.len())));
                group.push(I::CallFunction(Check::Raw.name(), Some(1)));
                group.push(I::DiscardTop);
            }
            I::ApplyFilter(name, Some(count), _) if !is_constant_time(name) => {
                before(&mut group, Check::Operands, *count);
            }
            I::PerformTest(name, Some(count), _) if !is_constant_time(name) => {
                before(&mut group, Check::Operands, *count);
            }
            I::CallFunction("super", _) => {}
            I::CallFunction(_, Some(count)) | I::CallMethod(_, Some(count)) | I::CallObject(Some(count))
                if *count > 0 =>
            {
                before(&mut group, Check::Operands, *count);
            }
            I::UnpackLists(_) => return Err(refused("`*` before an argument is not supported")),
            _ => {}
        }
        group.push(instruction.clone());
        let makes = matches!(
            instruction,
            I::Add
                | I::StringConcat
                | I::Mul
                | I::Slice
                | I::BuildList(_)
                | I::BuildTuple(_)
                | I::BuildMap(_)
                | I::ApplyFilter(..)
                | I::CallFunction(..)
                | I::CallMethod(..)
                | I::CallObject(_)
                | I::EndCapture
        );
        if makes {
            group.push(I::CallFunction(Check::Made.name(), Some(1)));
        }
        places.push(place);
        place += u32::try_from(group.len()).unwrap_or(u32::MAX);
        groups.push(group);
        index += 1;
    }
    let moved =
        |target: u32| usize::try_from(target).ok().and_then(|old| places.get(old)).copied().unwrap_or(place);
    let mut result = Instructions::new(original.name(), original.source());
    for (index, group) in (0..).zip(groups) {
        let line = original.get_line(index).and_then(|line| u16::try_from(line).ok());
        for mut instruction in group {
            match &mut instruction {
                I::Iterate(target)
                | I::Jump(target)
                | I::JumpIfFalse(target)
                | I::JumpIfFalseOrPop(target)
                | I::JumpIfTrueOrPop(target)
                | I::BuildMacro(_, target, _) => *target = moved(*target),
                _ => {}
            }
            match line {
                Some(line) => result.add_with_line(instruction, line),
                None => result.add(instruction),
            };
        }
    }
    Ok(result)
}

/// Whether a filter or test reads no more of its operand than its kind or length.
fn is_constant_time(name: &str) -> bool {
    [
        "defined",
        "undefined",
        "none",
        "string",
        "number",
        "integer",
        "float",
        "boolean",
        "mapping",
        "sequence",
        "iterable",
        "true",
        "false",
        "odd",
        "even",
        "divisibleby",
        "length",
        "count",
        "first",
        "last",
        "default",
        "d",
    ]
    .contains(&name)
}

/// A check, called by the rewritten instructions: it returns its operands in the order in which they are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Operands that are read or copied.
    Operands,
    /// A text or list and a count.
    Repeat,
    /// A value and the namespace that is to hold it.
    Assign,
    /// A value to iterate over.
    Loop,
    /// A value to print.
    Emit,
    /// The length of a text of the template that is printed.
    Raw,
    /// A value that was made; returned as it is.
    Made,
}

impl Check {
    const ALL: [Self; 7] =
        [Self::Operands, Self::Repeat, Self::Assign, Self::Loop, Self::Emit, Self::Raw, Self::Made];

    /// A name that no template can write.
    const fn name(self) -> &'static str {
        match self {
            Self::Operands => "check operands",
            Self::Repeat => "check repeat",
            Self::Assign => "check assign",
            Self::Loop => "check loop",
            Self::Emit => "check emit",
            Self::Raw => "check raw",
            Self::Made => "check made",
        }
    }
}

impl Object for Check {
    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, operands: &[Value]) -> Result<Value, Error> {
        match (**self, operands) {
            (Self::Made, [value]) => {
                make(weight(value)?)?;
                return Ok(value.clone());
            }
            (Self::Raw, [length]) => make(length.as_usize().map_or(MOST_WEIGHT, crate::convert::bytes))?,
            (Self::Repeat, [left, right]) => repeated(left, right)?,
            (Self::Assign, [value, _]) => {
                read(weight(value)?)?;
                if holds_namespace(value) {
                    return Err(refused("a namespace cannot hold a namespace"));
                }
            }
            (Self::Loop, [value]) => spelled(value)?,
            (Self::Emit, [value]) => make(weight(value)?)?,
            _ => {
                for operand in operands {
                    read(weight(operand)?)?;
                }
            }
        }
        Ok(operands.iter().rev().cloned().collect::<Vec<_>>().into())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Bytes that a value takes when it is printed, about: shared parts count each time.
fn weight(value: &Value) -> Result<u64, Error> {
    let mut total = 0;
    weigh(value, 0, &mut total)?;
    Ok(total)
}

fn weigh(value: &Value, depth: u32, total: &mut u64) -> Result<(), Error> {
    let text = value.as_str().map_or(0, |text| crate::convert::bytes(text.len()));
    *total = total.saturating_add(NODE + text);
    if *total > MOST_WEIGHT {
        return Err(refused("it makes a value that is too large"));
    }
    if depth > MOST_DEPTH {
        return Err(refused("it nests values too deeply"));
    }
    match (value.kind(), value.as_object()) {
        (ValueKind::Seq | ValueKind::Iterable, Some(object)) => {
            for item in object.try_iter().into_iter().flatten() {
                weigh(&item, depth + 1, total)?;
            }
        }
        (_, Some(object)) => {
            for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                weigh(&key, depth + 1, total)?;
                weigh(&item, depth + 1, total)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether a namespace is in a value, which is not too deep.
fn holds_namespace(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    object.type_name().ends_with("Namespace")
        || match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                object.try_iter().into_iter().flatten().any(|item| holds_namespace(&item))
            }
            _ => {
                let mut pairs = object.try_iter_pairs().into_iter().flatten();
                pairs.any(|(key, item)| holds_namespace(&key) || holds_namespace(&item))
            }
        }
}

fn make(weight: u64) -> Result<(), Error> {
    if weight > MOST_WEIGHT {
        return Err(refused("it makes a value that is too large"));
    }
    read(weight)?;
    SPENT.with(|spent| {
        let (made, read) = spent.get();
        spent.set((made.saturating_add(weight), read));
        if made > MOST_MADE { Err(refused("it makes too many values")) } else { Ok(()) }
    })
}

fn read(weight: u64) -> Result<(), Error> {
    if BEGIN.with(Instant::elapsed) > MOST_TIME {
        return Err(refused("it takes too long"));
    }
    SPENT.with(|spent| {
        let (made, read) = spent.get();
        spent.set((made, read.saturating_add(weight)));
        if read > MOST_READ { Err(refused("it takes too long")) } else { Ok(()) }
    })
}

/// `text * count` or `count * text`.
fn repeated(left: &Value, right: &Value) -> Result<(), Error> {
    let count = |value: &Value| value.as_i64().map(|count| u64::try_from(count).unwrap_or(0));
    let (value, times) = match (count(left), count(right)) {
        (None, Some(times)) => (left, times),
        (Some(times), None) => (right, times),
        _ => return Ok(()),
    };
    if value.is_number() {
        return Ok(());
    }
    make(weight(value)?.saturating_mul(times))
}

/// A text whose characters, or a list whose elements become values of their own.
fn spelled(value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => make(crate::convert::bytes(text.len()).saturating_mul(NODE)),
        None => read(weight(value)?),
    }
}

fn replaced(text: &str, from: &str, to: &str) -> Result<(), Error> {
    let found = crate::convert::bytes(text.matches(from).count());
    let added = found.saturating_mul(crate::convert::bytes(to.len()));
    make(crate::convert::bytes(text.len()).saturating_add(added))
}

/// A list and a separator.
fn joined(arguments: &[Value]) -> Result<(), Error> {
    let [list, rest @ ..] = arguments else { return Ok(()) };
    spelled(list)?;
    let separator = rest.iter().map(weight).sum::<Result<u64, Error>>()?;
    let count = match list.as_str() {
        Some(text) => Some(text.len()),
        None => list.len(),
    };
    let count = count.map_or(MOST_WEIGHT / NODE, crate::convert::bytes);
    make(weight(list)?.saturating_add(count.saturating_mul(separator)))
}

/// A text and a width, which may be a text, for each of its lines.
fn indented(arguments: &[Value]) -> Result<(), Error> {
    let Some((text, rest)) = arguments.split_first() else { return Ok(()) };
    counted(rest)?;
    let lines = text.as_str().map_or(1, |text| text.matches('\n').count() + 1);
    let width = rest.iter().map(|value| Ok(weight(value)?.max(value.as_i64().unwrap_or(0).unsigned_abs())));
    let width = width.sum::<Result<u64, Error>>()?;
    make(weight(text)?.saturating_add(crate::convert::bytes(lines).saturating_mul(width)))
}

/// Numbers that say how many.
fn counted(arguments: &[Value]) -> Result<(), Error> {
    for value in arguments {
        let numbers: Vec<Value> = match Kwargs::try_from(value.clone()) {
            Ok(named) => named.args().filter_map(|name| named.peek(name).ok()).collect(),
            Err(_) => vec![value.clone()],
        };
        if numbers
            .iter()
            .any(|number| number.is_number() && number.as_usize().is_none_or(|n| n as u64 > MOST_WIDTH))
        {
            return Err(refused(format!("a width or count is above {MOST_WIDTH}")));
        }
    }
    Ok(())
}

/// A format (`%s` or `{}`) and its values: no width of its placeholders may be large, and each may print all of the values.
fn formatted(format: &Value, values: &[Value], mark: char) -> Result<(), Error> {
    let Some(text) = format.as_str() else { return Ok(()) };
    let mut placeholders = 0_u64;
    for after in text.split(mark).skip(1) {
        placeholders += 1;
        // Flags, width and precision; `*` and a nested placeholder take theirs from the values.
        let end = match mark {
            '%' => {
                let name = after.strip_prefix('(').and_then(|rest| rest.find(')')).map_or(0, |end| end + 2);
                let rest = after.get(name..).unwrap_or_default();
                let conversion = rest.find(|c: char| c.is_alphabetic() || c == '%').unwrap_or(rest.len());
                &rest[..conversion]
            }
            _ => &after[..after.find('}').unwrap_or(after.len())],
        };
        let digits = end.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
        if digits > 4 || end.contains('*') {
            return Err(refused(format!("a width of a format is above {MOST_WIDTH}")));
        }
    }
    if mark == '{' && text.contains(':') && text.matches('{').count() != text.matches('}').count() {
        return Err(refused("a format has unbalanced braces"));
    }
    if mark == '{' && nested_braces(text) {
        return Err(refused("a width of a format is a placeholder"));
    }
    let values = values.iter().map(weight).sum::<Result<u64, Error>>()?;
    make(weight(format)?.saturating_add(placeholders.saturating_mul(values + MOST_WIDTH)))
}

/// Whether a placeholder stands in a placeholder; `{{` is a brace.
fn nested_braces(text: &str) -> bool {
    let mut inside = false;
    text.replace("{{", "").replace("}}", "").chars().any(|character| {
        let nested = inside && character == '{';
        inside = match character {
            '{' => true,
            '}' => false,
            _ => inside,
        };
        nested
    })
}

/// Methods that multiply their operands.
fn check_method(value: &Value, method: &str, arguments: &[Value]) -> Result<(), Error> {
    match (method, value.as_str(), arguments) {
        ("replace", Some(text), [from, to, ..]) => match (from.as_str(), to.as_str()) {
            (Some(from), Some(to)) => replaced(text, from, to),
            _ => Ok(()),
        },
        ("join", Some(_), [list, ..]) => joined(&[list.clone(), value.clone()]),
        ("format", Some(_), values) => formatted(value, values, '{'),
        ("split" | "splitlines", Some(_), _) => spelled(value),
        _ => Ok(()),
    }
}

/// Calls a filter of the engine with its arguments as they came.
fn call<F, R, A>(state: &mut State<'_, '_>, filter: F, arguments: &[Value]) -> Result<Value, Error>
where
    F: minijinja::functions::Function<R, A>,
    R: minijinja::value::FunctionResult,
    A: for<'a> minijinja::value::FunctionArgs<'a>,
{
    Value::from_function(filter).call(state, arguments)
}

/// Python's `json.dumps(value, ensure_ascii=False)`: separators `, ` and `: `, or a line an element with `indent`.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    use serde::Serialize as _;
    let indent: Option<usize> = options.get("indent")?;
    // Accepted; both are the behaviour anyway.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let width = indent.unwrap_or(0).min(16);
    // Each of its values may stand on a line of its own.
    make(weight(value)?.saturating_mul(if width == 0 { 1 } else { 8 }))?;
    let mut out = Vec::new();
    let done = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
        Some(_) => {
            let indent = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
    };
    done.map_err(|error| refused(error.to_string()))?;
    String::from_utf8(out).map_err(|error| refused(error.to_string()))
}

/// JSON on one line, with a space after each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
