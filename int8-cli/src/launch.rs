//! Processes that were started together, by torchrun, mpirun or srun: what their environment says of this one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use int8_nn::group::GroupOptions;

use crate::args::Global;
use crate::failure::Failure;

/// One of several processes that compute a model together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) process: usize,
    pub(crate) processes: usize,
    /// Its number among those of this machine.
    pub(crate) local: usize,
    /// Host and port of the first process.
    address: String,
    /// GPUs that it sees, where that is restricted.
    visible: Option<usize>,
}

/// Variables of launchers: number of the process, number of processes, number on its machine.
const LAUNCHERS: [[&str; 3]; 4] = [
    ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
    ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
];

static FOLLOWS: AtomicBool = AtomicBool::new(false);

/// Whether another process runs the command, and this one computes parts of its model: it prints nothing but errors and leaves
/// standard input to the other.
pub(crate) fn follows() -> bool {
    FOLLOWS.load(Ordering::Relaxed)
}

/// Finds out whether this process [`follows`].
pub(crate) fn detect(global: &Global) {
    let is_other = |launch: Launch| launch.process > 0;
    // An error of the environment is reported when the device is opened.
    let follows = Launch::of_environment().ok().flatten().is_some_and(is_other);
    FOLLOWS.store(global.tensor_parallel.is_some() && follows, Ordering::Relaxed);
}

/// How long processes wait for each other: some read a model's files for the first time.
const TIMEOUT: Duration = Duration::from_secs(300);

impl Launch {
    /// What the environment says; `None` where this process was started alone.
    ///
    /// # Errors
    /// For numbers that contradict each other, and without the first process's address.
    pub(crate) fn of_environment() -> Result<Option<Self>, Failure> {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Failure> {
        let number = |name: &str| match variable(name) {
            None => Ok(None),
            Some(value) => value.trim().parse::<usize>().map(Some).map_err(|_| {
                Failure::usage(format!("the variable {name} is `{}`, and no number", value.escape_debug()))
            }),
        };
        for [process, processes, local] in LAUNCHERS {
            let (Some(index), Some(count)) = (number(process)?, number(processes)?) else { continue };
            if count <= 1 {
                continue;
            }
            if index >= count {
                return Err(Failure::usage(format!(
                    "the variable {process} is {index}, and {processes} {count}"
                )));
            }
            let Some(host) = variable("MASTER_ADDR").filter(|host| !host.is_empty()) else {
                return Err(Failure::usage(format!(
                    "{processes} is {count}, and MASTER_ADDR is not set: the host of the first process"
                ))
                .hint("torchrun sets it; with mpirun or srun export MASTER_ADDR and, if 29500 is taken, MASTER_PORT"));
            };
            // MASTER_PORT itself is that of torchrun's store.
            let port = number("MASTER_PORT")?.unwrap_or(29500) + 1;
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            return Ok(Some(Self {
                process: index,
                processes: count,
                local: number(local)?.unwrap_or(0),
                address: format!("{host}:{port}"),
                visible: variable("CUDA_VISIBLE_DEVICES").map(|list| list.split(',').count()),
            }));
        }
        Ok(None)
    }

    /// The number of this process's first GPU, of `gpus` that each process has.
    pub(crate) fn first_gpu(&self, gpus: usize) -> usize {
        match self.visible {
            // It sees its own alone.
            Some(visible) if visible <= gpus => 0,
            _ => self.local * gpus,
        }
    }

    pub(crate) fn options(&self) -> GroupOptions {
        GroupOptions {
            process: self.process,
            processes: self.processes,
            address: self.address.clone(),
            timeout: TIMEOUT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>, Failure> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        Launch::of(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn launchers_are_understood() {
        assert_eq!(launch(&[]).expect("alone"), None);
        assert_eq!(launch(&[("RANK", "0"), ("WORLD_SIZE", "1")]).expect("alone"), None);
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "1234"),
        ];
        let found = launch(&torchrun).expect("a launch").expect("several");
        assert_eq!((found.process, found.processes, found.local), (3, 4, 1));
        assert_eq!(found.address, "node0:1235");
        assert_eq!((found.first_gpu(1), found.first_gpu(2)), (1, 2));
        let srun = [
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_LOCALID", "1"),
            ("MASTER_ADDR", "::1"),
            ("CUDA_VISIBLE_DEVICES", "1"),
        ];
        let found = launch(&srun).expect("a launch").expect("several");
        assert_eq!((found.address.as_str(), found.first_gpu(1)), ("[::1]:29501", 0));
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_name() {
        for (variables, word) in [
            (&[("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")][..], "RANK is 2"),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], "RANK is `x`"),
            (&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")], "MASTER_ADDR"),
        ] {
            let error = launch(variables).expect_err("refused").to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
