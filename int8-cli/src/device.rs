//! Where to compute: the processor with one of its kernels, or a GPU.

use std::sync::Arc;

use int8_nn::backend::cpu::{CpuBackend, Kernel};

use crate::args::Global;
use crate::failure::Failure;

/// The device that the options name.
#[derive(Debug)]
pub(crate) struct Device {
    kernel: Option<String>,
    cuda: Option<u32>,
}

impl Device {
    /// Reads the options and sets up the threads.
    ///
    /// # Errors
    /// For a device that does not exist, or if the threads cannot be started.
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let cuda = cuda_ordinal(&global.device)?;
        if let Some(threads) = global.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(usize::from(threads))
                .build_global()
                .map_err(|error| Failure::new(format!("--threads {threads}: {error}")))?;
        }
        Ok(Self { kernel: global.kernel.clone(), cuda })
    }

    /// The number of the GPU that `--device cuda` or `cuda:N` names.
    pub(crate) fn cuda(&self) -> Option<u32> {
        self.cuda
    }

    /// For commands that run models.
    ///
    /// # Errors
    /// With `--device cuda`.
    pub(crate) fn require_cpu(&self) -> Result<(), Failure> {
        match self.cuda {
            Some(ordinal) => Err(Failure::new(format!(
                "--device cuda:{ordinal}: models do not run on a GPU yet; use --device cpu"
            ))
            .hint("`int8 bench --device cuda` measures single layers there")),
            None => Ok(()),
        }
    }

    /// The CPU with the kernel that `--kernel` names.
    ///
    /// # Errors
    /// When there is no such kernel.
    pub(crate) fn backend(&self) -> Result<Arc<CpuBackend>, Failure> {
        Ok(Arc::new(CpuBackend::with_kernel(self.kernel()?)))
    }

    /// The kernel that `--kernel` names, or the best.
    ///
    /// # Errors
    /// When there is no such kernel.
    pub(crate) fn kernel(&self) -> Result<Kernel, Failure> {
        match &self.kernel {
            Some(name) if !name.is_empty() => {
                Kernel::by_name(name).map_err(|error| Failure::usage(error.to_string()))
            }
            _ => Ok(Kernel::best()),
        }
    }
}

/// `None` for `auto` and `cpu`, the device's number for `cuda` and `cuda:N`.
fn cuda_ordinal(device: &str) -> Result<Option<u32>, Failure> {
    let unknown = || Failure::usage(format!("--device {device}: expected auto, cpu or cuda:N"));
    match (device, device.strip_prefix("cuda")) {
        ("auto" | "cpu", _) => Ok(None),
        (_, Some("")) => Ok(Some(0)),
        (_, Some(rest)) => {
            let number = rest.strip_prefix(':').and_then(|number| number.parse().ok());
            number.map(Some).ok_or_else(unknown)
        }
        _ => Err(unknown()),
    }
}
