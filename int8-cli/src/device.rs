//! Where to compute: the processor with one of its kernels, or a GPU; and the one place where a command that runs a model
//! meets its backend.

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "cuda")]
use int8_nn::Loader;
#[cfg(feature = "cuda")]
use int8_nn::backend::OutlierWeights;
use int8_nn::backend::cpu::{CpuBackend, Kernel};
#[cfg(feature = "cuda")]
use int8_nn::backend::cuda::CudaBackend;
use int8_nn::backend::parallel::TensorParallel;
use int8_nn::backend::{Backend, FloatType, Precision, Quantization};
use int8_nn::checkpoint::Checkpoint;
use int8_nn::group::Group;
use int8_nn::placement::Devices;
#[cfg(feature = "cuda")]
use int8_nn::plan::{Load, Shape};

use crate::args::{Global, PrecisionArgs, Preset};
use crate::failure::Failure;
use crate::launch::Launch;
use crate::output::Output;
use crate::stored_threshold::with_stored_threshold;
use crate::values::OrAuto;

/// The device that the options name.
#[derive(Debug)]
pub(crate) struct Device {
    kernel: Option<String>,
    choice: Choice,
    /// Blocks on each of several GPUs.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a build with CUDA has GPUs"))]
    blocks: Option<Vec<usize>>,
    /// Ranks of tensor parallelism, in this process.
    ranks: Option<usize>,
    /// The other processes, which have as many.
    launch: Option<Launch>,
    /// Blocks in host memory.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a build with CUDA has GPUs"))]
    offload: Option<OrAuto<usize>>,
    compute: Option<FloatType>,
}

/// `--device`
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// A GPU that runs the model, or else the processor.
    Auto,
    Cpu,
    /// These GPUs, at least one.
    Cuda(Vec<u32>),
}

/// Kinds of devices, as far as settings depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processor {
    Cpu,
    /// An NVIDIA GPU.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a build with CUDA has one"))]
    Gpu,
}

/// Work with the model of a checkpoint, written once for all backends: [`Device::run`] chooses one.
pub(crate) trait Task {
    /// The result.
    type Output;

    /// The precision in which the model is loaded (first). A GPU that lacks it is not chosen unless it is named.
    ///
    /// # Errors
    /// When the options contradict each other.
    fn precision(&self) -> Result<Precision, Failure>;

    /// The options of the precision, where a stored threshold and the device's default for the head count if they name none; `None`
    /// where they do not.
    fn options(&self) -> Option<&PrecisionArgs> {
        None
    }

    /// Does the work.
    ///
    /// # Errors
    /// When it fails.
    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<Self::Output, Failure>;
}

/// The backend (or several of one kind) that was chosen, with the checkpoint whose model it is to run and its precision there.
#[derive(Debug)]
pub(crate) struct Place<B> {
    pub(crate) devices: Devices<B>,
    /// Devices of this process that read a layer's weights at the same time.
    pub(crate) ranks: usize,
    pub(crate) processor: Processor,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) precision: Precision,
}

/// GPUs that are to be used, with what is free of their memory, and the precision of the task there.
#[cfg(feature = "cuda")]
struct Gpus {
    backends: Vec<Arc<CudaBackend>>,
    memory: Vec<u64>,
    precision: Precision,
}

impl Device {
    /// Reads the options and sets up the threads.
    ///
    /// # Errors
    /// For a device that does not exist or that this build has no support for, or if the threads cannot be started.
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let all_ranks = global.tensor_parallel.map(usize::from);
        let launch = if all_ranks.is_some() { Launch::of_environment()? } else { None };
        let processes = launch.as_ref().map_or(1, |launch| launch.processes);
        let ranks = match all_ranks {
            Some(all) if !all.is_multiple_of(processes) => {
                return Err(Failure::usage(format!(
                    "--tensor-parallel {all} in {processes} processes: each has as many of the devices"
                )));
            }
            ranks => ranks.map(|all| all / processes),
        };
        let first = launch.as_ref().zip(ranks).map_or(0, |(launch, ranks)| launch.first_gpu(ranks));
        let choice = Choice::of(&global.device)?.of_ranks(ranks, first, &global.device)?;
        if ranks.is_some() && global.device_map.is_some() {
            return Err(Failure::usage(
                "--tensor-parallel gives every device a part of each block, --device-map some of the blocks; drop one",
            ));
        }
        if let (Choice::Cuda(_), false) = (&choice, cfg!(feature = "cuda")) {
            return Err(Failure::new(format!(
                "--device {}: this `int8` was built without GPU support; --device cpu runs models on the processor",
                global.device
            ))
            .hint(
                "`cargo xtask cuda-toolkit` provides a CUDA toolkit and `cargo build --release -p int8-cli --features cuda` \
                 builds with it; or copy the programs of `cargo xtask dist --cuda` to the GPU machine",
            ));
        }
        if let Some(compute) = global.compute
            && (choice == Choice::Cpu || !cfg!(feature = "cuda"))
        {
            return Err(Failure::usage(format!(
                "--compute {}: only a GPU computes in a type that can be chosen, the processor in 32-bit; drop the option",
                compute.name()
            )));
        }
        if let Some(blocks) = global.offload
            && (choice == Choice::Cpu || !cfg!(feature = "cuda"))
        {
            return Err(Failure::usage(format!(
                "--offload {blocks}: only a GPU leaves blocks in host memory; drop the option"
            )));
        }
        if let Some(blocks) = &global.device_map {
            let devices = match &choice {
                Choice::Cuda(ordinals) => ordinals.len(),
                Choice::Auto | Choice::Cpu => 1,
            };
            if blocks.len() != devices {
                return Err(Failure::usage(format!(
                    "--device-map gives blocks for {} devices, and --device names {devices}",
                    blocks.len()
                )));
            }
        }
        if let Some(threads) = global.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(usize::from(threads))
                .build_global()
                .map_err(|error| Failure::new(format!("--threads {threads}: {error}")))?;
        }
        let blocks = global.device_map.clone();
        let Global { offload, compute, .. } = *global;
        Ok(Self { kernel: global.kernel.clone(), choice, blocks, ranks, launch, offload, compute })
    }

    /// The processes that compute together: waits for them.
    fn group(&self, output: &Output) -> Result<Arc<Group>, Failure> {
        let Some(launch) = &self.launch else { return Ok(Arc::new(Group::alone())) };
        let options = launch.options();
        output.remark(&output.dim(&format!(
            "process {} of {}: waiting for the others at {}",
            options.process, options.processes, options.address
        )));
        let group = Group::connect(&options)?;
        if group.process() == 0 {
            // Whatever this process does or waits for, it ends when it is no longer whole. Others notice when they are told nothing
            // more.
            for watch in group.watch()? {
                let output = *output;
                std::thread::spawn(move || {
                    if let Some(error) = watch.wait() {
                        // What the work itself meets says more: that the processes were given different things, for example.
                        std::thread::sleep(Duration::from_secs(1));
                        output.failure(&error.into());
                        std::process::exit(1);
                    }
                });
            }
        }
        Ok(Arc::new(group))
    }

    /// The number of the GPU that `--device cuda` or `cuda:N` names, for work that one GPU does.
    ///
    /// # Errors
    /// When several are named.
    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(&self) -> Result<Option<u32>, Failure> {
        match &self.choice {
            Choice::Cuda(ordinals) => match ordinals[..] {
                [ordinal] => Ok(Some(ordinal)),
                _ => Err(Failure::usage("--device: this measures one GPU; name one")),
            },
            Choice::Auto | Choice::Cpu => Ok(None),
        }
    }

    /// For commands that run no model.
    ///
    /// # Errors
    /// With `--device cuda`.
    pub(crate) fn require_cpu(&self) -> Result<(), Failure> {
        match &self.choice {
            Choice::Cuda(ordinals) => Err(Failure::usage(format!(
                "--device cuda:{}: this command runs no model and computes on the processor alone; drop the option",
                ordinals[0]
            ))),
            Choice::Auto | Choice::Cpu => Ok(()),
        }
    }

    /// Runs `task` with the model of `checkpoint`: on the device that `--device` names, or with `auto` on the first GPU if it
    /// can run this model with these settings, and else on the processor.
    ///
    /// # Errors
    /// Those of the task; and when the device cannot be used, or there is no such kernel.
    pub(crate) fn run<T: Task>(
        &self,
        checkpoint: Checkpoint,
        task: T,
        output: &Output,
    ) -> Result<T::Output, Failure> {
        #[cfg(feature = "cuda")]
        if let Some(Gpus { backends, memory, precision }) = self.gpu(&checkpoint, &task, output)? {
            let (processor, ranks) = (Processor::Gpu, self.ranks.unwrap_or(1));
            if self.ranks.is_some() {
                let devices = Arc::new(TensorParallel::of_group(backends, self.group(output)?)?).into();
                return task.run(&Place { devices, ranks, processor, checkpoint, precision });
            }
            let devices = match &self.blocks {
                Some(blocks) => Devices::with_blocks(backends, blocks.clone())?,
                None => Devices::with_memory(backends, memory)?,
            };
            return task.run(&Place { devices, ranks, processor, checkpoint, precision });
        }
        if let (Choice::Auto, Some(ranks)) = (&self.choice, self.ranks) {
            return Err(Failure::new(format!(
                "--tensor-parallel {ranks}: this `int8` was built without GPU support; with --device cpu the processor is every rank, to compare results"
            )));
        }
        if let Some(compute) = self.compute {
            output.remark(&format!(
                "--compute {} changes nothing: the processor computes in 32-bit",
                compute.name()
            ));
        }
        let precision = on_processor(stored(task.precision()?, &task, &checkpoint)?, &task);
        let kernel = self.kernel()?;
        if let Some(ranks) = self.ranks {
            let ranks = (0..ranks).map(|_| Arc::new(CpuBackend::with_kernel(kernel))).collect();
            let devices = Arc::new(TensorParallel::of_group(ranks, self.group(output)?)?).into();
            return task.run(&Place { devices, ranks: 1, processor: Processor::Cpu, checkpoint, precision });
        }
        let backend = Arc::new(CpuBackend::with_kernel(kernel));
        task.run(&Place {
            devices: backend.into(),
            ranks: 1,
            processor: Processor::Cpu,
            checkpoint,
            precision,
        })
    }

    /// The GPUs that are to be used, with the precision of the task there; `None` for the processor.
    #[cfg(feature = "cuda")]
    fn gpu(
        &self,
        checkpoint: &Checkpoint,
        task: &impl Task,
        output: &Output,
    ) -> Result<Option<Gpus>, Failure> {
        let ordinals = match &self.choice {
            Choice::Cpu => return Ok(None),
            Choice::Auto => &[0],
            Choice::Cuda(ordinals) => &ordinals[..],
        };
        let compute = self.compute.or(checkpoint.float_type()).unwrap_or(FloatType::F16);
        let open = || -> Result<_, Failure> {
            let precision = on_gpu(stored(task.precision()?, task, checkpoint)?, task, output);
            let (mut backends, mut memory) = (Vec::new(), Vec::new());
            for &ordinal in ordinals {
                let backend = CudaBackend::new(ordinal, compute).map_err(|error| {
                    // Most machines have no GPU: a short word.
                    if let (Choice::Auto, int8_nn::Error::Cuda(int8_cuda::Error::NoDevice { reason, .. })) =
                        (&self.choice, &error)
                    {
                        return Failure::new(format!("no NVIDIA GPU or driver ({reason})"));
                    }
                    Failure::new(format!("--device cuda:{ordinal}: {error}"))
                        .hint("nvidia-smi lists the GPUs; --device cpu runs models on the processor")
                })?;
                let free = backend.free_memory()?;
                backend.offload(self.offloaded(checkpoint, &precision, free)?)?;
                memory.push(free);
                backends.push(Arc::new(backend));
            }
            // A GPU that is named gets the model, and the loader's error names what it lacks.
            if self.choice == Choice::Auto {
                let loader = Loader::new(checkpoint.clone()).precision(precision);
                loader.accept(&backends[0].capabilities())?;
            }
            Ok(Gpus { backends, memory, precision })
        };
        match (open(), &self.choice) {
            (Ok(found), Choice::Auto) => {
                output.remark(&output.dim(&format!("on {}", found.backends[0].describe())));
                Ok(Some(found))
            }
            (Err(failure), Choice::Auto) => {
                output.remark(&output.dim(&format!("on the CPU: {}", failure.message())));
                Ok(None)
            }
            (found, _) => found.map(Some),
        }
    }

    /// Blocks that stay in host memory, where a GPU has these bytes free.
    #[cfg(feature = "cuda")]
    fn offloaded(&self, checkpoint: &Checkpoint, precision: &Precision, free: u64) -> Result<usize, Failure> {
        /// Tokens that there is to be room for.
        const CONTEXT: u64 = 2048;
        match (self.offload, precision) {
            (None, _) => Ok(0),
            (Some(OrAuto::Given(blocks)), _) => Ok(blocks),
            (Some(OrAuto::Auto), Precision::Float) => Err(Failure::usage(
                "--offload auto: blocks stay in host memory in int8 alone; drop --fp or the option",
            )),
            (Some(OrAuto::Auto), Precision::Int8(_)) => {
                let shape = Shape::of_checkpoint("", checkpoint)?;
                let context = shape.max_positions.map_or(CONTEXT, |most| most.min(CONTEXT));
                let blocks = shape.blocks_to_offload(Load { context, batch: 1, kv_cache: None }, free);
                Ok(usize::try_from(blocks).unwrap_or(usize::MAX))
            }
        }
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

/// What `precision` is on a GPU: with dequantised outlier weights, unless exact ones are asked for, because these cost a fifth of its
/// speed for one sequence and more in batches; and [`Quantization::best_rows`] for `best`, whose groups it does not compute.
#[cfg(feature = "cuda")]
fn on_gpu(precision: Precision, task: &impl Task, output: &Output) -> Precision {
    let Precision::Int8(quantization) = precision else { return precision };
    let Quantization { int8_head, float_experts, .. } = quantization;
    if quantization == (Quantization { int8_head, float_experts, ..Quantization::best() }) {
        output.remark(
            &output.dim("--preset best: one scale a row on a GPU (best-rows), not one for 32 values"),
        );
        return Precision::Int8(Quantization { int8_head, float_experts, ..Quantization::best_rows() });
    }
    let exact =
        task.options().is_some_and(|options| options.outlier_weights.is_some() || options.preset.is_some());
    let outlier_weights = if exact { quantization.outlier_weights } else { OutlierWeights::Dequantized };
    Precision::Int8(Quantization { outlier_weights, ..quantization })
}

/// What `precision` is on a processor: with the head in int8 unless it is to stay as stored, since a small model's is a third of what
/// a token reads. The presets, which are chosen to lose least, keep it.
fn on_processor(precision: Precision, task: &impl Task) -> Precision {
    match precision {
        Precision::Int8(quantization)
            if task.options().is_some_and(|options| {
                !options.float_head && matches!(options.preset, None | Some(Preset::Paper))
            }) =>
        {
            Precision::Int8(Quantization { int8_head: true, ..quantization })
        }
        other => other,
    }
}

/// `precision` with the checkpoint's threshold, where it counts.
fn stored(precision: Precision, task: &impl Task, checkpoint: &Checkpoint) -> Result<Precision, Failure> {
    match task.options() {
        Some(options) => with_stored_threshold(precision, options, checkpoint),
        None => Ok(precision),
    }
}

impl Choice {
    /// The devices of this number of ranks: those that are named, or GPUs from number `first` on, or the processor several times.
    fn of_ranks(self, ranks: Option<usize>, first: usize, device: &str) -> Result<Self, Failure> {
        let Some(ranks) = ranks else { return Ok(self) };
        let first = || (0..).skip(first).take(ranks).collect();
        if let Self::Cuda(ordinals) = &self
            && (1..ordinals.len()).any(|index| ordinals[..index].contains(&ordinals[index]))
        {
            return Err(Failure::usage(format!(
                "--tensor-parallel {ranks}, but --device {device} names a GPU twice: the parts of one would wait for each other"
            )));
        }
        match self {
            Self::Cpu => Ok(Self::Cpu),
            Self::Auto if cfg!(feature = "cuda") => Ok(Self::Cuda(first())),
            Self::Auto => Ok(Self::Auto),
            Self::Cuda(ordinals) if ordinals == [0] => Ok(Self::Cuda(first())),
            Self::Cuda(ordinals) if ordinals.len() == ranks => Ok(Self::Cuda(ordinals)),
            Self::Cuda(_) => Err(Failure::usage(format!(
                "--tensor-parallel {ranks}, but --device {device}: name as many GPUs, or cuda for the first ones"
            ))),
        }
    }

    /// `auto`, `cpu`, `cuda`, `cuda:N`, `cuda:N,cuda:N`
    fn of(device: &str) -> Result<Self, Failure> {
        let ordinal = |name: &str| match name.strip_prefix("cuda")? {
            "" => Some(0),
            rest => rest.strip_prefix(':').and_then(|number| number.parse().ok()),
        };
        match device {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => device.split(',').map(ordinal).collect::<Option<_>>().map(Self::Cuda).ok_or_else(|| {
                Failure::usage(format!(
                    "--device {device}: expected auto, cpu, cuda:N, or several as cuda:0,cuda:1"
                ))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        let of = |name| Choice::of(name).ok();
        assert_eq!(of("auto"), Some(Choice::Auto));
        assert_eq!(of("cpu"), Some(Choice::Cpu));
        let cuda = |ordinals: &[u32]| Some(Choice::Cuda(ordinals.to_vec()));
        assert_eq!((of("cuda"), of("cuda:3")), (cuda(&[0]), cuda(&[3])));
        assert_eq!(of("cuda:1,cuda:0"), cuda(&[1, 0]));
        for wrong in [
            "cuda:0,", "cuda:0,1", "cpu,cpu", "", "gpu", "cuda3", "cuda:", "cuda:-1", "cuda:x", "cpu:0",
            "CPU",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        let ranks = |name| Choice::of(name).expect("devices").of_ranks(Some(2), 0, name).ok();
        assert_eq!((ranks("cuda"), ranks("cuda:1,cuda:0")), (cuda(&[0, 1]), cuda(&[1, 0])));
        assert_eq!((ranks("cuda:0,cuda:0"), ranks("cuda:0,cuda:1,cuda:2")), (None, None));
    }
}
