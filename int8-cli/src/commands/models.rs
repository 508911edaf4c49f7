//! `int8 pull`, `int8 list` and `int8 rm`: models of the Hugging Face hub in the cache that Python shares.

use std::path::Path;

use int8_nn::checkpoint::Source;
use int8_nn::hub::{CachedModel, ModelId};
use serde_json::{Map, Value, json};

use super::counted;
use crate::failure::Failure;
use crate::hub;
use crate::output::{Output, bytes};

/// Downloads a model and prints its folder.
pub(crate) fn pull(model: &Path, revision: Option<&str>, output: &Output) -> Result<(), Failure> {
    let Some(id) = hub::id(model, revision)? else {
        return Err(not_a_name(model));
    };
    let folder = hub::folder(model, revision, output)?;
    if output.json {
        return output.object(&json!({"model": id.to_string(), "path": folder}));
    }
    output.line(&folder.display().to_string())
}

/// Prints the models of the cache.
pub(crate) fn list(output: &Output) -> Result<(), Failure> {
    let hub = hub::hub()?;
    let models = hub.models()?;
    let cache = hub.cache().display().to_string();
    let total: u64 = models.iter().map(|model| model.bytes).sum();
    if output.json {
        let models: Vec<_> = models.iter().map(described).collect();
        return output.object(&json!({"cache": cache, "bytes": total, "models": models}));
    }
    if models.is_empty() {
        output.remark(&format!("no models in {cache}; `int8 pull org/name` downloads one"));
        return Ok(());
    }
    let names = models.iter().map(|model| model.id.to_string());
    let width = names.clone().map(|name| name.len()).max().unwrap_or(0);
    for (model, name) in models.iter().zip(names) {
        let kind = model_type(model).unwrap_or_else(|| "incomplete".to_owned());
        let revisions: Vec<_> =
            model.revisions.keys().map(String::as_str).filter(|name| *name != "main").collect();
        let line = format!("{name:width$}  {:>8}  {kind}  {}", bytes(model.bytes), revisions.join(" "));
        output.line(line.trim_end())?;
    }
    output.remark(&output.dim(&format!("{}, {} in {cache}", counted(models.len(), "model"), bytes(total))));
    Ok(())
}

/// Removes models from the cache; all names are checked first.
pub(crate) fn remove(models: &[String], output: &Output) -> Result<(), Failure> {
    let hub = hub::hub()?;
    let known = hub.models()?;
    let mut ids = Vec::new();
    for model in models {
        let id: ModelId = model.parse().map_err(|_| not_a_name(Path::new(model)))?;
        if model.contains('@') {
            return Err(Failure::usage(format!(
                "{model}: a model is removed with all its revisions: name {}",
                id.repository()
            )));
        }
        if !known.iter().any(|cached| cached.id == id) {
            return Err(Failure::new(format!("{id} is not in {}", hub.cache().display()))
                .hint("`int8 list` shows what is there"));
        }
        ids.push(id);
    }
    let mut freed = Map::new();
    for id in ids {
        // `None`: named twice, or another process was faster.
        let size = hub.remove(&id)?.unwrap_or(0);
        output.remark(&format!("{id}: removed, {} freed", bytes(size)));
        freed.insert(id.to_string(), json!(size));
    }
    if output.json {
        return output.object(&json!({"removed": freed}));
    }
    Ok(())
}

fn not_a_name(model: &Path) -> Failure {
    Failure::usage(format!("{}: expected a model of the hub, org/name", model.display()))
}

/// `model_type` of a complete model.
fn model_type(model: &CachedModel) -> Option<String> {
    let config = Source::folder(model.folder.as_ref()?).ok()?.read_config().ok()?;
    Some(config.get("model_type")?.as_str()?.escape_debug().to_string())
}

fn described(model: &CachedModel) -> Value {
    json!({
        "model": model.id.to_string(),
        "model_type": model_type(model),
        "bytes": model.bytes,
        "revisions": model.revisions,
        "path": model.folder,
    })
}
