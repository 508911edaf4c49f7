//! Files of reports.

use std::path::Path;

use crate::failure::Failure;

/// Writes a file as a whole: an earlier one stays until the new one is complete.
///
/// # Errors
/// When the folder does not exist or the disk is full.
pub(crate) fn write_file(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    let named = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".part");
    std::fs::write(&temporary, contents).map_err(named)?;
    std::fs::rename(&temporary, path).map_err(named)
}
