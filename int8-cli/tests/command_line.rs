//! The program as its users call it, on the embedded model and the tiny checkpoints of `int8-nn`'s tests.

mod page;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Whether the program has GPU support.
const CUDA: bool = cfg!(feature = "cuda");

fn int8(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_int8"))
        .args(arguments)
        .env_remove("INT8_KERNEL")
        // No test may use the network.
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .expect("the program")
}

fn json(arguments: &[&str]) -> Value {
    let output = int8(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else")
}

/// Exit code and message of a command that must fail.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = int8(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(output.stdout.is_empty(), "{arguments:?} printed {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().expect("no signal"), String::from_utf8(output.stderr).expect("UTF-8"))
}

fn model(family: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../int8-nn/tests/data/models").join(family);
    path.to_str().expect("UTF-8").to_owned()
}

fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-opt")
}

#[test]
fn demo_shows_the_papers_point() {
    let demo = json(&["demo"]);
    let loss = |name: &str| {
        let schemes = demo["schemes"].as_array().expect("schemes");
        let scheme = schemes.iter().find(|scheme| scheme["scheme"] == name).expect("the scheme");
        scheme["loss"].as_f64().expect("a number")
    };
    assert!(loss("llm-int8").abs() <= 0.005, "LLM.int8() loses {}", loss("llm-int8"));
    assert!(loss("absmax") >= 0.8, "absmax loses only {}", loss("absmax"));
    let planted = [17, 45, 71, 102, 138, 169];
    let outliers = demo["outliers"].as_array().expect("outliers");
    for dimension in planted {
        let found =
            outliers.iter().find(|outlier| outlier["dimension"] == dimension).expect("a planted dimension");
        assert_eq!(found["layers"], found["of"], "dimension {dimension} is an outlier everywhere");
    }
    let bytes = |name: &str| demo["bytes"][name].as_f64().expect("bytes");
    assert!(bytes("int8") < 0.65 * bytes("fp16") && bytes("fp16") == 0.5 * bytes("fp32"));
}

#[test]
fn ids_go_in_and_out() {
    for family in ["opt", "llama", "gpt2", "bloom", "gpt_neox", "qwen2"] {
        let run = json(&["run", &model(family), "--ids", "5,17,42", "--greedy", "-n", "4", "--ignore-eos"]);
        assert_eq!(run["prompt_ids"], serde_json::json!([5, 17, 42]), "{family}");
        assert_eq!(run["new_ids"].as_array().expect("ids").len(), 4, "{family}");
        assert_eq!(run["ids"].as_array().expect("ids").len(), 7, "{family}");
        assert_eq!(run["text"], Value::Null, "{family}: no tokenizer, no text");
    }
}

/// T5 reads the prompt and writes another text; commands that need a text to continue refuse it.
#[test]
fn a_prompt_is_read_and_another_text_written() {
    let t5 = model("../encoders/t5");
    let run = json(&["run", &t5, "--ids", "5,17,42", "--greedy", "-n", "4", "--ignore-eos"]);
    assert_eq!(run["prompt_ids"], serde_json::json!([5, 17, 42]));
    assert_eq!(run["new_ids"].as_array().map(Vec::len), Some(4));
    assert_eq!(run["ids"], run["new_ids"], "the prompt is no part of the text");
    let streamed = int8(&["run", &t5, "--ids", "5,17,42", "--greedy", "-n", "4", "--ignore-eos"]);
    assert_eq!(String::from_utf8_lossy(&streamed.stdout).split_whitespace().count(), 4);
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("logits.safetensors");
    let out = out.to_str().expect("UTF-8");
    let (code, message) = failure(&["logits", &t5, "--ids", "5,17", "--out", out]);
    assert!(code == 1 && message.contains("t5") && message.contains("int8 run"), "{message}");
    let (code, message) = failure(&["embed", &t5, "--text", "a"]);
    assert!(code == 1 && message.contains("`t5`") && message.contains("int8 run"), "{message}");
}

/// A recording becomes text window by window; what is no recording, or no model of speech, is named.
#[test]
fn a_recording_is_written_down() {
    let whisper = model("../speech/whisper");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).expect("a file");
        path(name)
    };
    // 1.5 seconds at 8 kHz: a window and a half.
    let mut sound =
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1F\0\0\x80\x3E\0\0\x02\0\x10\0data\xFF\xFF\xFF\xFF"
            .to_vec();
    sound.extend((0..12_000_i32).flat_map(|n| (n * n % 9001 - 4500).to_le_bytes()[..2].to_vec()));
    let wav = write("sound.wav", &sound);
    let written = json(&["transcribe", &whisper, &wav, "--fp"]);
    assert_eq!(written["windows"].as_array().map(Vec::len), Some(2));
    assert_eq!(written["windows"][1]["to"], 1.5);
    assert!(written["language"].is_string() && written["text"].as_str().is_some_and(|text| text.len() > 3));
    let printed = int8(&["transcribe", &whisper, &wav, "--fp"]);
    assert_eq!(String::from_utf8_lossy(&printed.stdout).trim_end(), written["text"].as_str().expect("text"));
    let german = json(&["transcribe", &whisper, &wav, "--language", "de", "--task", "translate"]);
    assert_eq!((&german["language"], &german["task"]), (&"de".into(), &"translate".into()));

    let text = write("text.wav", b"no sound at all, but a text");
    let (empty, opt, t5) = (write("empty.wav", b""), model("opt"), model("../encoders/t5"));
    for (arguments, part) in [
        (&["transcribe", &whisper, &text][..], "text.wav: not a WAV file"),
        (&["transcribe", &whisper, &empty], "empty.wav: the file is empty"),
        (&["transcribe", &whisper, &path("none.wav")], "none.wav: No such file"),
        (&["transcribe", &whisper, &wav, "--language", "tlh"], "no language \"tlh\""),
        (&["transcribe", &opt, &wav], "`int8 run` runs such a model"),
        (&["transcribe", &t5, &wav], "`int8 run` runs such a model"),
        (&["run", &whisper, "-p", "hello"], "`int8 transcribe MODEL FILE.wav` runs such a model"),
        (&["embed", &whisper, "--text", "hello"], "`int8 transcribe MODEL FILE.wav` runs such a model"),
    ] {
        let (code, message) = failure(arguments);
        assert!(code == 1 && message.contains(part), "{arguments:?}: {message}");
    }
    let (code, _) = failure(&["transcribe", &whisper, &wav, "--task", "sing"]);
    assert_eq!(code, 2);
}

#[test]
fn text_streams_as_it_is_decoded() {
    let folder = demo_folder();
    let arguments =
        ["run", folder.to_str().expect("UTF-8"), "-p", "The old man sat by", "--greedy", "-n", "24"];
    let streamed = int8(&arguments);
    assert!(streamed.status.success());
    let text = json(&arguments)["text"].as_str().expect("text").to_owned();
    assert_eq!(String::from_utf8(streamed.stdout).expect("UTF-8"), text + "\n");
    let sampled = |seed: &str| {
        let run = json(&[&arguments[..4], &["-n", "24", "--seed", seed, "--temperature", "1.2"]].concat());
        run["text"].as_str().expect("text").to_owned()
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
}

#[test]
fn logits_are_written_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("logits.safetensors");
    let path = out.to_str().expect("UTF-8");
    json(&["logits", &model("llama"), "--ids", "5,17,42", "--fp", "--out", path]);
    let file = fs::read(&out).expect("the file");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("safetensors");
    let logits = tensors.tensor("logits").expect("logits");
    assert_eq!((logits.dtype(), logits.shape()), (safetensors::Dtype::F32, &[3, 160][..]));
    let files = fs::read_dir(folder.path()).expect("the folder").count();
    assert_eq!(files, 1, "nothing is left beside the file");
}

#[test]
fn eval_prints_what_it_promises() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text.txt");
    fs::write(
        &text,
        "The old man sat by the fire.\r\nHe had not left the island for eleven years.\r\n".repeat(4),
    )
    .expect("a text");
    let demo = demo_folder();
    let demo = demo.to_str().expect("UTF-8");
    let text = text.to_str().expect("UTF-8");
    for scheme in int8_core::Scheme::ALL {
        let eval = json(&[
            "eval",
            demo,
            "--text",
            text,
            "--window",
            "32",
            "--windows",
            "2",
            "--scheme",
            scheme.name(),
        ]);
        assert_eq!(eval["scheme"], scheme.name());
        assert_eq!((&eval["windows"], &eval["window"], &eval["tokens"]), (&2.into(), &32.into(), &62.into()));
        assert!(eval["perplexity"].as_f64().expect("a number") > 1.0);
        let share = eval["outlier_columns_fraction"].as_f64().expect("a number");
        assert_eq!(share > 0.0, scheme.decomposes(), "{scheme}: {share}");
    }
    let float = json(&["eval", demo, "--text", text, "--window", "32", "--fp"]);
    assert_eq!((&float["scheme"], &float["outlier_columns_fraction"]), (&"float".into(), &0.0.into()));
    // Carriage returns are no tokens: the same text with other line ends scores the same.
    let unix = folder.path().join("unix.txt");
    fs::write(&unix, fs::read_to_string(text).expect("the text").replace('\r', "")).expect("a text");
    let same = json(&["eval", demo, "--text", unix.to_str().expect("UTF-8"), "--window", "32", "--fp"]);
    assert_eq!(same["perplexity"], float["perplexity"]);
}

#[test]
fn inspect_adds_up() {
    let inspect = json(&["inspect", &model("gpt2")]);
    let tensors = inspect["tensors"].as_array().expect("tensors");
    let bytes: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().expect("bytes")).sum();
    assert_eq!(inspect["bytes"], bytes);
    assert_eq!(inspect["model_type"], "gpt2");
    assert_eq!(inspect["quantization"], "not quantised");
    let table = int8(&["inspect", &model("gpt2"), "--tensors"]);
    let table = String::from_utf8(table.stdout).expect("UTF-8");
    assert!(
        table.contains("transformer.h.1.attn.c_attn.weight") && table.contains("runs          yes"),
        "{table}"
    );
}

#[test]
fn kernels_agree() {
    let verify = json(&["verify", "--cases", "20"]);
    page::check("verify", &verify);
    assert_eq!(verify["passed"], true);
    let kernels = verify["kernels"].as_array().expect("kernels");
    assert!(kernels.iter().any(|kernel| kernel["kernel"] == "portable"));
    assert!(kernels.iter().all(|kernel| kernel["worst_share_of_bound"].as_f64().expect("a number") > 0.0));
    let run = |kernel: &str| {
        let command = ["run", &model("opt"), "--ids", "5,17,42", "--greedy"];
        // The default depends on the kernel: bf16 where tiles multiply it.
        json(&[&command[..], &["--kernel", kernel, "--kv-cache", "f32"]].concat())["ids"].clone()
    };
    let ids: Vec<Value> =
        kernels.iter().map(|kernel| run(kernel["kernel"].as_str().expect("a name"))).collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
}

#[test]
fn a_question_is_asked_in_the_models_template() {
    let folder = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(demo_folder()).expect("the demo") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("a copy");
    }
    let template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>";
    let config = serde_json::json!({"chat_template": template}).to_string();
    std::fs::write(folder.path().join("tokenizer_config.json"), config).expect("a file");
    let model = folder.path().to_str().expect("a path");
    let chat = ["run", model, "--chat", "--system", "Be brief.", "--greedy", "-n", "5"];
    let answer = json(&[&chat[..], &["-p", "Who is there?"]].concat());
    let prompt = answer["prompt"].as_str().expect("a text");
    assert_eq!(prompt, "<system> Be brief.\n<user> Who is there?\n<assistant>");
    assert_eq!(answer["new_ids"].as_array().expect("ids").len(), 5);
    let roles: Vec<&str> = answer["messages"]
        .as_array()
        .expect("messages")
        .iter()
        .map(|message| message["role"].as_str().expect("a role"))
        .collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    // Only the answer is printed.
    let printed = int8(&[&chat[..], &["-p", "Who is there?"]].concat());
    let printed = String::from_utf8(printed.stdout).expect("UTF-8");
    assert_eq!(printed.trim_end(), answer["text"].as_str().expect("a text").trim_end());
}

#[test]
fn mistakes_are_explained() {
    let opt = model("opt");
    let missing = "no/such-model";
    let mut wrong = Vec::new();
    for (arguments, code, words) in [
        (vec!["run", missing, "-p", "x"], 1, vec!["no/such-model", "HF_HUB_OFFLINE", "no folder"]),
        (vec!["run", &opt, "-p", "x"], 1, vec!["tokenizer.json", "token ids"]),
        (vec!["run", &opt], 2, vec!["--prompt", "--ids"]),
        (vec!["run", &opt, "--chat", "-p", "x"], 1, vec!["tokenizer_config.json", "no chat model"]),
        (vec!["run", &opt, "--chat"], 2, vec!["--chat", "--prompt"]),
        (vec!["run", &opt, "--chat", "--ids", "5"], 2, vec!["--chat", "--ids"]),
        (vec!["run", &opt, "-p", "x", "--system", "y"], 2, vec!["--system", "--chat"]),
        (vec!["logits", &opt, "--out", "x"], 2, vec!["--prompt", "--ids"]),
        (vec!["run", &opt, "--ids", "5,160"], 1, vec!["160", "vocabulary"]),
        (vec!["run", &opt, "--ids", "5", "--greedy", "--seed", "3"], 2, vec!["--seed"]),
        (vec!["run", &opt, "--ids", "5", "--temperature=-1"], 1, vec!["temperature"]),
        (vec!["run", &opt, "--ids", "5", "--scheme", "int4"], 2, vec!["int4", "absmax-vector-wise"]),
        (
            vec!["run", &opt, "--ids", "5", "--scheme", "absmax", "--threshold", "6"],
            2,
            vec!["--threshold", "llm-int8"],
        ),
        (vec!["run", &opt, "--ids", "5", "--threshold", "-1"], 2, vec!["-1"]),
        (vec!["run", &opt, "--ids", "5", "--rule", "relative", "--threshold", "6"], 2, vec!["--tau"]),
        (vec!["run", &opt, "--ids", "5", "--fp", "--scheme", "absmax"], 2, vec!["--fp", "--scheme"]),
        (vec!["run", &opt, "--ids", "5", "--kernel", "mmx"], 2, vec!["mmx", "portable"]),
        (vec!["run", &opt, "--ids", "5", "--device", "cuda:99"], 1, vec!["cuda:99", "cpu"]),
        (vec!["run", &opt, "--ids", "5", "--device", "tpu"], 2, vec!["tpu", "cpu"]),
        (vec!["eval", &opt, "--text", "no/such.txt"], 1, vec!["no/such.txt"]),
        (vec!["verify", "--cases", "0", "--require", "cuda"], 1, vec!["cuda"]),
        // No machine has so many, with the feature `cuda` or without.
        (vec!["bench", "--quick", "--device", "cuda:99"], 1, vec!["cuda:99", "hint"]),
        (vec!["bench", "--quick", "--device", "cuda:x"], 2, vec!["cuda:x", "cuda:N"]),
        (vec!["bench", &opt, "--device", "cuda:99"], 1, vec!["cuda:99", "--device cpu"]),
        (vec!["eval", &opt, "--device", "cpu", "--compute", "bf16"], 2, vec!["--compute bf16", "GPU"]),
        (vec!["run", &opt, "--ids", "5", "--compute", "int8"], 2, vec!["int8", "bf16"]),
        (vec!["inspect", &opt, "--device", "cuda:99"], if CUDA { 2 } else { 1 }, vec!["cuda:99"]),
        (vec!["frobnicate"], 2, vec!["frobnicate"]),
    ] {
        let output = int8(&arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() != Some(code) || !words.iter().all(|word| message.contains(word)) {
            wrong.push(format!("{arguments:?}: {:?} {message}", output.status.code()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (code, message) = failure(&["eval", &opt, "--text", &format!("{opt}/model.safetensors")]);
    assert_eq!(code, 1);
    assert!(message.contains("UTF-8"), "{message}");
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = String::from_utf8(int8(&["completions", shell]).stdout).expect("UTF-8");
        assert!(script.contains("inspect") && script.contains("outlier-weights"), "{shell}");
    }
}

#[test]
fn a_model_is_timed_in_int8_and_as_stored() {
    let arguments = ["bench", &model("llama"), "--quick", "--prompt-tokens", "5", "--new-tokens", "3"];
    let bench = json(&arguments);
    let runs = bench["runs"].as_array().expect("runs");
    assert_eq!(runs.iter().map(|run| &run["weights"]).collect::<Vec<_>>(), ["int8", "as stored"]);
    for run in runs {
        for rate in ["prefill_tokens_per_second", "decode_tokens_per_second"] {
            assert!(run["batches"][0][rate].as_f64().expect("a rate") > 0.0, "{run}");
        }
    }
    assert!(runs[0]["weight_bytes"].as_u64() < runs[1]["weight_bytes"].as_u64());
    assert!(bench["speed_ups"][0]["decode"].as_f64().expect("a ratio") > 0.0);
    // Several sequences, other settings, a text that is shorter than what is read.
    let (demo, folder) = (demo_folder(), tempfile::tempdir().expect("a folder"));
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "The old man sat in the garden. ").expect("a file");
    let options = ["--only", "int8", "--preset", "best", "--batch", "1,3", "--text"];
    let arguments =
        ["bench", demo.to_str().expect("UTF-8"), "--quick", "--prompt-tokens", "9", "--new-tokens", "2"];
    let bench = json(&[&arguments[..], &options[..], &[text.to_str().expect("UTF-8")]].concat());
    let batches = bench["runs"][0]["batches"].as_array().expect("batches");
    assert_eq!(batches.iter().map(|batch| batch["batch"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(3)]);
    assert!(bench["runs"].as_array().map(Vec::len) == Some(1) && bench["speed_ups"] == serde_json::json!([]));
    assert!(
        bench["settings"] == "best"
            && batches[1]["kv_cache_bytes"].as_u64() > batches[0]["kv_cache_bytes"].as_u64()
    );
    let (code, message) = failure(&["bench", "--preset", "best"]);
    assert!(code == 2 && message.contains("--shape"), "{message}");
    let (code, message) = failure(&["bench", &model("llama"), "--new-tokens", "0"]);
    assert!(code == 2 && message.contains("--new-tokens"), "{message}");
    let (code, message) = failure(&["bench", &model("llama"), "--prompt-tokens", "1000000"]);
    assert!(code == 1 && message.contains("positions"), "{message}");
}

#[test]
fn a_shape_is_timed_without_a_checkpoint() {
    let sizes =
        ["--quick", "--prompt-tokens", "5", "--new-tokens", "2", "--batch", "1,3", "--context", "4,6"];
    let bench = |options: &[&str]| json(&[&["bench", "--shape", "opt-125m"], &sizes[..], options].concat());
    let both = bench(&["--bandwidth", "20GB"]);
    for run in [&both["int8"], &both["fp"]] {
        assert!(run["prefill"]["tokens_per_second"].as_f64() > Some(0.0), "{run}");
        let steps = run["decode"].as_array().expect("steps");
        let sizes: Vec<_> =
            steps.iter().map(|step| (step["batch"].as_u64(), step["context"].as_u64())).collect();
        let pair = |batch, context| (Some(batch), Some(context));
        assert_eq!(sizes, [pair(1, 4), pair(3, 4), pair(1, 6), pair(3, 6)]);
        for step in steps {
            assert!(
                step["tokens_per_second"].as_f64() > Some(0.0) && step["share_of_floor"].as_f64() > Some(0.0)
            );
        }
    }
    // One column in a thousand of the layers that read hidden states.
    let outliers = both["int8"]["outlier_columns_fraction"].as_f64().expect("a share");
    assert!(outliers > 1e-4 && outliers < 1e-3, "{outliers}");
    assert!(both["int8"]["weight_bytes"].as_u64() < both["fp"]["weight_bytes"].as_u64());
    assert_eq!(both["int8_over_fp"]["decode"].as_array().map(Vec::len), Some(4));
    let one = bench(&["--only", "int8"]);
    assert!(one["fp"].is_null() && one["int8_over_fp"].is_null() && one["int8"].is_object());
    for (options, code, word) in [
        (&["--context", "3000"][..], 2, "2048"),
        (&["--batch", "0"], 2, "--batch"),
        (&["--batch", "1,x"], 2, "x"),
        (&["--shape", "opt-1b"], 2, "opt-13b"),
    ] {
        let shape: &[&str] = if options[0] == "--shape" { &[] } else { &["--shape", "opt-125m"] };
        let (found, message) = failure(&[&["bench"], shape, options].concat());
        assert!(found == code && message.contains(word), "{options:?}: {found} {message}");
    }
}

#[test]
fn the_head_is_int8_by_default_and_not_in_best() {
    let demo = demo_folder();
    let demo = demo.to_str().expect("UTF-8");
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo.txt");
    let text = text.to_str().expect("UTF-8");
    let score = |options: &[&str]| {
        let report =
            json(&[&["eval", demo, "--text", text, "--window", "64", "--windows", "2"], options].concat());
        let head = report["settings"]["int8_head"].as_bool().expect("a setting");
        (head, report["perplexity"].as_f64().expect("a number"))
    };
    for preset in [&[][..], &["--preset", "best"]] {
        let [plain, int8] = ["--float-head", "--int8-head"].map(|head| score(&[preset, &[head]].concat()));
        assert_eq!((plain.0, int8.0), (false, true));
        // A preset that is to lose least keeps the head.
        assert_eq!(score(preset), if preset.is_empty() { int8 } else { plain });
        assert!(plain.1 != int8.1 && (plain.1 - int8.1).abs() < 0.005 * plain.1, "{plain:?}, {int8:?}");
    }
    for (wrong, head) in [
        (&["--fp"][..], "--int8-head"),
        (&["--compare"], "--int8-head"),
        (&["--fp"], "--float-head"),
        (&["--int8-head"], "--float-head"),
    ] {
        let (code, message) = failure(&[&["eval", demo, "--text", text, head], wrong].concat());
        assert!(code == 2 && message.contains(head), "{code}: {message}");
    }
    let (code, message) = failure(&["embed", &model("../encoders/bert"), "--text", "a", "--int8-head"]);
    assert!(code == 2 && message.contains("no output head"), "{code}: {message}");
}

#[test]
fn the_type_of_the_cache_is_chosen_and_reported() {
    let demo = demo_folder();
    let run = |kv_cache: &[&str]| {
        let demo = demo.to_str().expect("UTF-8");
        json(&[&["run", demo, "--ids", "5,17,42", "--greedy", "-n", "4"], kv_cache].concat())
    };
    // demo-opt is stored in f16.
    let by_default = if int8_cpu::Kernel::best().attends_on_bf16_tiles() { "bf16" } else { "f16" };
    let auto = run(&[]);
    assert_eq!(auto["kv_cache"], by_default);
    let wide = run(&["--kv-cache", "f32"]);
    assert_eq!(wide["kv_cache"], "f32");
    let bytes = |report: &Value| report["kv_cache_bytes"].as_u64().expect("bytes");
    assert_eq!(bytes(&wide), 2 * bytes(&auto));
    assert_eq!(run(&["--kv-cache", "bf16"])["kv_cache"], "bf16");
    let narrow = run(&["--kv-cache", "int8"]);
    assert_eq!(narrow["kv_cache"], "int8");
    assert!(bytes(&narrow) < bytes(&auto) * 6 / 10, "{narrow}");

    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo.txt");
    let (demo, text) = (demo.to_str().expect("UTF-8"), text.to_str().expect("UTF-8"));
    let eval = |kv_cache: &[&str]| {
        let report =
            json(&[&["eval", demo, "--text", text, "--window", "64", "--windows", "2"], kv_cache].concat());
        (
            report["kv_cache"].as_str().expect("a name").to_owned(),
            report["perplexity"].as_f64().expect("a number"),
        )
    };
    let (plain, auto) = (eval(&[]), eval(&["--kv-cache", "auto"]));
    assert_eq!((plain.0.as_str(), auto.0.as_str()), ("f32", by_default));
    let most = if by_default == "f16" { 0.01 } else { 0.03 };
    assert!(plain.1 != auto.1 && (plain.1 - auto.1).abs() < most * plain.1, "{plain:?}, {auto:?}");
    let int8 = eval(&["--kv-cache", "int8"]);
    assert!(plain.1 != int8.1 && (plain.1 - int8.1).abs() < 0.02 * plain.1, "{plain:?}, {int8:?}");
    let (code, message) = failure(&["run", demo, "--ids", "5", "--kv-cache", "f8"]);
    assert!(code == 2 && message.contains("bf16"), "{code}: {message}");
}

#[test]
fn batches_of_prompts_answer_each_as_alone_and_go_on_after_an_interruption() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let mut prompts = String::new();
    for seed in 0..40 {
        let line =
            serde_json::json!({"id": seed, "prompt": "Once upon a time", "seed": seed, "max_tokens": 8});
        prompts.push_str(&format!("{line}\n"));
    }
    fs::write(path("prompts"), &prompts).expect("written");
    let model = demo_folder();
    let run = |out: &str, at_once: &str| {
        let (prompts, out) = (path("prompts"), path(out));
        let model = model.to_str().expect("UTF-8");
        int8(&["run", model, "--batch", &prompts, "--out", &out, "--at-once", at_once, "--device", "cpu"])
    };
    let lines = |name: &str| -> Vec<String> {
        let mut lines: Vec<_> =
            fs::read_to_string(path(name)).expect("answers").lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for (out, at_once) in [("together", "7"), ("alone", "1")] {
        let output = run(out, at_once);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let all = lines("together");
    assert_eq!((all.len(), &all), (40, &lines("alone")));
    assert!(all.iter().all(|line| line.contains("\"text\"")), "{all:?}");
    // Cut in the middle of a line.
    let whole = fs::read(path("together")).expect("answers");
    fs::write(path("cut"), &whole[..whole.len() / 2]).expect("written");
    assert!(run("cut", "7").status.success());
    assert_eq!(lines("cut"), all);
    // Another file is not touched, nor are answers to other prompts.
    fs::write(path("note"), "my text\n").expect("written");
    assert_eq!(run("note", "7").status.code(), Some(1));
    assert_eq!(lines("note"), ["my text"]);
    fs::write(path("prompts"), prompts.replace("Once", "Twice")).expect("written");
    assert_eq!(run("cut", "7").status.code(), Some(1));
    assert_eq!(lines("cut"), all);
}
