//! Where a model is: a folder on disk, or a name on the Hugging Face hub that is downloaded into one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use int8_nn::hub::{Hub, HubError, ModelId, Settings};

use crate::failure::Failure;
use crate::output::{Output, bytes};

/// The folder or file of `model`. A path on disk takes precedence; a model of the hub is downloaded unless it is in the cache.
///
/// # Errors
/// When `revision` is given for a folder, or the model cannot be downloaded.
pub(crate) fn folder(model: &Path, revision: Option<&str>, output: &Output) -> Result<PathBuf, Failure> {
    let Some(id) = id(model, revision)? else { return Ok(model.to_path_buf()) };
    let begin = Instant::now();
    let mut downloaded: Vec<(String, u64)> = Vec::new();
    let bar = output.byte_bar("");
    let folder = hub()?.fetch(&id, &mut |progress| {
        let file = format!("{} ({} of {})", progress.file, progress.files_done + 1, progress.files);
        match downloaded.last_mut() {
            Some((last, size)) if *last == file => *size = progress.bytes,
            _ => downloaded.push((file.clone(), progress.bytes)),
        }
        bar.set_bytes(&file, progress.bytes_done, progress.bytes);
    });
    bar.clear();
    let folder = folder.map_err(|error| failure(&id, error))?;
    if !downloaded.is_empty() {
        let size = downloaded.iter().map(|(_, size)| size).sum();
        let seconds = begin.elapsed().as_secs_f64();
        output.remark(&format!("{id}: {} files, {} in {seconds:.1} s", downloaded.len(), bytes(size)));
    }
    Ok(folder)
}

/// The hub as the environment describes it.
///
/// # Errors
/// When a variable cannot be used.
pub(crate) fn hub() -> Result<Hub, Failure> {
    Ok(Hub::new(Settings::from_environment())?)
}

/// The id of `model` on the hub; `None` for a path on disk and for a name that is no id.
///
/// # Errors
/// When `revision` is given and `model` is no id, or the revision cannot be one.
pub(crate) fn id(model: &Path, revision: Option<&str>) -> Result<Option<ModelId>, Failure> {
    let id = model.to_str().filter(|_| !model.exists()).and_then(|text| text.parse::<ModelId>().ok());
    match (id, revision) {
        (Some(id), Some(revision)) => id
            .at(revision)
            .map(Some)
            .map_err(|error| Failure::usage(format!("--revision {revision}: {error}"))),
        (None, Some(_)) => Err(Failure::usage(format!(
            "--revision is about models of the hub (org/name); {} is not one",
            model.display()
        ))),
        (id, None) => Ok(id),
    }
}

/// A name that is not on the hub was perhaps meant as a folder.
pub(crate) fn failure(id: &ModelId, error: HubError) -> Failure {
    let unknown =
        matches!(error, HubError::NoRepository { .. } | HubError::Network { .. } | HubError::Offline { .. });
    let failure = Failure::from(error);
    if unknown {
        failure.hint(format!(
            "there is no folder `{id}` here either, so it was taken as the name of a model on the hub"
        ))
    } else {
        failure
    }
}
