//! What a checkpoint must not be, judged before any weight is read: quantised in a format that is not read, or made for another
//! task; and what it holds besides the model.

use crate::Error;
use crate::checkpoint::Checkpoint;
use crate::config::RawConfig;
use crate::families::Kind;

/// Most layers that are believed without their tensors, far above the deepest model.
pub(crate) const MOST_LAYERS: usize = 16_384;

/// Names of `quant_method`.
const METHODS: [(&str, &str); 9] = [
    ("gptq", "GPTQ"),
    ("awq", "AWQ"),
    ("hqq", "HQQ"),
    ("quanto", "Quanto"),
    ("bitsandbytes_4bit", "bitsandbytes 4-bit"),
    ("compressed-tensors", "compressed-tensors"),
    ("fp8", "8-bit floats"),
    ("fbgemm_fp8", "8-bit floats (FBGEMM)"),
    ("torchao", "torchao"),
];

/// Ends of `architectures` whose head is none for text.
const OTHER_TASKS: [&str; 6] = [
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForImageClassification",
    "ForAudioClassification",
];

/// Refuses weights in a format that `config.json` names and that is not read.
///
/// # Errors
/// [`Error::Config`] with the format's name.
pub(crate) fn refuse_quantization(raw: &RawConfig) -> Result<(), Error> {
    const KEY: &str = "quantization_config";
    if raw.get(KEY).is_none() {
        return Ok(());
    }
    let settings = raw.section(KEY)?;
    let method = settings.text_or("quant_method", "bitsandbytes")?;
    let four_bit = method == "bitsandbytes" && settings.flag_or("load_in_4bit", false)?;
    if !four_bit && ["bitsandbytes", "bitsandbytes_8bit", "llm_int8", "mxfp4"].contains(&method) {
        return Ok(());
    }
    let name = match METHODS.iter().find(|(known, _)| *known == method) {
        _ if four_bit => "bitsandbytes 4-bit".to_owned(),
        Some((_, name)) => (*name).to_owned(),
        None => method.escape_debug().to_string(),
    };
    Err(raw.problem(
        KEY,
        format!(
            "says that the weights are quantised as {name}, which is not read; use the model's 16-bit version, or one that \
             bitsandbytes saved with load_in_8bit=True"
        ),
    ))
}

/// Refuses a checkpoint that cannot be run as a model of `kind`, whatever its weights are.
///
/// # Errors
/// [`Error::Config`], or the error of [`Checkpoint::refuse_foreign`].
pub(crate) fn refuse(raw: &RawConfig, checkpoint: &Checkpoint, kind: Kind) -> Result<(), Error> {
    refuse_quantization(raw)?;
    checkpoint.refuse_foreign()?;
    const KEY: &str = "architectures";
    let first = raw.get(KEY).and_then(|list| list.get(0)).and_then(serde_json::Value::as_str);
    match first.filter(|first| OTHER_TASKS.iter().any(|task| first.ends_with(task))) {
        Some(first) if kind != Kind::Encoder => Err(raw.problem(
            KEY,
            format!(
                "is {}: a head that classifies, and none for the next token; use the language model it was made from",
                first.escape_debug()
            ),
        )),
        _ => Ok(()),
    }
}

/// Refuses more layers than any model has and than there are tensors: what is done for each would not end.
///
/// # Errors
/// [`Error::Input`].
pub(crate) fn layers(raw: &RawConfig, layers: usize, checkpoint: &Checkpoint) -> Result<(), Error> {
    let tensors = checkpoint.tensors().count();
    if layers <= MOST_LAYERS.max(tensors) {
        return Ok(());
    }
    Err(Error::Input(format!(
        "{} says {layers} layers, but the checkpoint has {tensors} tensors",
        raw.file()
    )))
}

/// Tensors of the checkpoint that the loaded model does not hold, without those that old versions of transformers stored and
/// no version reads: tables of positions and masks.
pub(crate) fn unread(checkpoint: &Checkpoint) -> Vec<String> {
    const STALE: [&str; 9] = [
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
        "inv_freq",
        "position_ids",
        "rotary_emb.cos_cached",
        "rotary_emb.sin_cached",
        "EncDecAttention.relative_attention_bias.weight",
    ];
    let is_stale = |name: &&str| STALE.iter().any(|end| name.ends_with(end));
    checkpoint.unread().into_iter().filter(|name| !is_stale(name)).map(str::to_owned).collect()
}
