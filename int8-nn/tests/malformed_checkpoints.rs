//! Missing, truncated, lying and hostile checkpoints: each gives one error that names file, tensor, expected and found;
//! none panics, allocates beyond the file's size, or opens. Beside them the odd but valid ones, which must open.

#[path = "malformed_checkpoints/files.rs"]
mod files;
#[path = "malformed_checkpoints/mutations.rs"]
mod mutations;
#[path = "malformed_checkpoints/table.rs"]
mod table;
#[path = "malformed_checkpoints/torch.rs"]
mod torch;
#[path = "malformed_checkpoints/valid.rs"]
mod valid;

use std::collections::BTreeSet;

use int8_nn::checkpoint::Checkpoint;

#[test]
fn every_malformed_checkpoint_gives_its_error() {
    let cases = [table::cases(), torch::cases()].concat();
    assert!(cases.len() >= 120, "the table has shrunk to {} cases", cases.len());
    let unique: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(unique.len(), cases.len(), "two cases have one name");

    let mut failures = Vec::new();
    for case in &cases {
        let folder = tempfile::tempdir().unwrap();
        files::write(folder.path(), &case.files);
        let result =
            Checkpoint::open(folder.path().join(case.open)).and_then(|checkpoint| (case.then)(&checkpoint));
        let error = match result {
            Ok(()) => {
                failures.push(format!("{}: expected {}, but nothing failed", case.name, case.variant));
                continue;
            }
            Err(error) => error,
        };
        if !(case.is_variant)(&error) {
            failures.push(format!("{}: expected {}, found {error:?}", case.name, case.variant));
        }
        let message = error.to_string();
        for name in &case.names {
            if !message.contains(name) {
                failures.push(format!("{}: the message does not name {name:?}: {message}", case.name));
            }
        }
        if message.chars().any(char::is_control) {
            failures.push(format!("{}: control characters in {message:?}", case.name));
        }
        // The message as shown to a user; `--nocapture` prints the table for reading.
        println!("{:<45} {}", case.name, message.replace(&folder.path().display().to_string(), "…"));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
