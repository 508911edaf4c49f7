//! `int8 plan`: how much memory a model takes, and which GPUs hold it.

use int8_nn::backend::KvType;
use int8_nn::checkpoint::Checkpoint;
use int8_nn::plan::{Estimate, Gpu, Load, PAPER_SETUPS, Precision, Shape};
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::convert::real_u64;
use crate::failure::Failure;
use crate::hub;
use crate::output::{Output, bytes};
use crate::values::OrAuto;

/// Default number of tokens of a sequence, if the model has at least so many positions.
const DEFAULT_CONTEXT: u64 = 2048;

/// Prints the plan of one model, or the paper's table.
pub(crate) fn run(arguments: &PlanArgs, ranks: Option<u16>, output: &Output) -> Result<(), Failure> {
    let Some(model) = &arguments.model else { return paper(output) };
    let shape = shape(arguments, model, output)?;
    let default = shape.max_positions.map_or(DEFAULT_CONTEXT, |most| most.min(DEFAULT_CONTEXT));
    let context = arguments.context.unwrap_or(default);
    if let Some(most) = shape.max_positions.filter(|most| context > *most) {
        output.remark(&format!(
            "note: {} has {most} positions; --context {context} is beyond them",
            shape.name
        ));
    }
    let kv_cache = arguments.kv_cache.and_then(OrAuto::given);
    let ranks = ranks.map(u64::from);
    let plan = Plan { load: Load { context, batch: arguments.batch, kv_cache }, shape, ranks, arguments };
    if output.json { output.object(&plan.as_json()) } else { plan.print(output) }
}

/// The shape of `model`: a path on disk, then a built-in name, then a model of the hub.
fn shape(arguments: &PlanArgs, model: &str, output: &Output) -> Result<Shape, Failure> {
    let path = std::path::Path::new(model);
    if path.exists() && arguments.revision.is_none() {
        return Ok(Shape::of_checkpoint(model, &Checkpoint::open(path)?)?);
    }
    if let Some(shape) = Shape::built_in(model) {
        return Ok(shape);
    }
    let Some(id) = hub::id(path, arguments.revision.as_deref())? else {
        return Err(Failure::new(format!(
            "{model}: no such folder, and no model that is built in. Give a folder, a model of the hub (org/name), or one of {}",
            Shape::built_in_names().join(", ")
        )));
    };
    let hub = hub::hub()?;
    // A cached model needs no request.
    if let Some(folder) = hub.cached(&id)? {
        return Ok(Shape::of_checkpoint(id.to_string(), &Checkpoint::open(folder)?)?);
    }
    output.remark(&format!("{id}: reading its configuration and the headers of its files"));
    let files = hub.headers(&id).map_err(|error| hub::failure(&id, error))?;
    Ok(Shape::of_headers(id.to_string(), &files)?)
}

struct Plan<'a> {
    shape: Shape,
    load: Load,
    /// GPUs that compute each layer together.
    ranks: Option<u64>,
    arguments: &'a PlanArgs,
}

/// A row of the table: its name and its value in an estimate.
type Row = (&'static str, fn(&Estimate) -> u64);

const ROWS: [Row; 9] = [
    ("linear layers", |estimate| estimate.linear),
    ("their scales", |estimate| estimate.scales),
    ("embeddings", |estimate| estimate.embeddings),
    ("output head", |estimate| estimate.head),
    ("norms, biases", |estimate| estimate.other),
    ("weights", Estimate::weights),
    ("KV cache, states", |estimate| estimate.cache),
    ("activations", |estimate| estimate.activations),
    ("total", Estimate::total),
];

impl Plan<'_> {
    fn estimates(&self) -> [Estimate; 3] {
        Precision::ALL.map(|precision| self.shape.estimate(precision, self.load))
    }

    /// Name and memory of each GPU.
    fn gpus(&self) -> Vec<(String, u64)> {
        match self.arguments.gpu_memory {
            Some(memory) => vec![(format!("GPU of {}", bytes(memory)), memory)],
            None => Gpu::ALL.iter().map(|gpu| (gpu.name.to_owned(), gpu.bytes())).collect(),
        }
    }

    fn needed(&self, memory: u64) -> [Option<u64>; 3] {
        Precision::ALL.map(|precision| self.shape.gpus_needed(precision, self.load, memory))
    }

    /// Whether `--gpus` are enough; true without it.
    fn is_enough(&self, needed: Option<u64>) -> bool {
        needed.is_some_and(|needed| self.arguments.gpus.is_none_or(|gpus| needed <= gpus))
    }

    fn as_json(&self) -> Value {
        let estimate = |(precision, estimate): (Precision, Estimate)| {
            let mut object = json!({
                "precision": precision.name(),
                "linear_bytes": estimate.linear,
                "scale_bytes": estimate.scales,
                "embedding_bytes": estimate.embeddings,
                "head_bytes": estimate.head,
                "other_bytes": estimate.other,
                "weight_bytes": estimate.weights(),
                "cache_bytes": estimate.cache,
                "activation_bytes": estimate.activations,
                "total_bytes": estimate.total(),
            });
            let gpus = self.gpus().into_iter().map(|(name, memory)| {
                let needed = self.shape.gpus_needed(precision, self.load, memory);
                let mut gpu = json!({"name": name, "memory_bytes": memory, "needed": needed});
                if self.arguments.gpus.is_some() {
                    gpu["fits"] = json!(self.is_enough(needed));
                }
                gpu
            });
            object["gpus"] = gpus.collect();
            if let Some(ranks) = self.ranks {
                object["rank_bytes"] = json!(estimate.of_rank(ranks));
            }
            object
        };
        json!({
            "model": self.shape.name,
            "weights": self.shape.weights(),
            "linear_weights": self.shape.linear,
            "blocks": self.shape.blocks,
            "context": self.load.context,
            "batch": self.load.batch,
            "kv_cache": self.load.kv_cache.map(KvType::name),
            "gpus": self.arguments.gpus,
            "tensor_parallel": self.ranks,
            "precisions": Precision::ALL.into_iter().zip(self.estimates()).map(estimate).collect::<Vec<_>>(),
        })
    }

    fn print(&self, output: &Output) -> Result<(), Failure> {
        let shape = &self.shape;
        let share = 100.0 * real_u64(shape.linear) / real_u64(shape.weights().max(1));
        output.line(&format!(
            "{}: {} weights in {} blocks; {share:.1}% of them belong to linear layers and become int8",
            output.bold(&shape.name),
            count(shape.weights()),
            shape.blocks
        ))?;
        let Load { context, batch, .. } = self.load;
        output.line(&format!("context {context} tokens, batch {batch}\n"))?;
        let heading: String =
            Precision::ALL.iter().map(|precision| format!("{:>12}", precision.name())).collect();
        output.line(&format!("{:16}{heading}", ""))?;
        let estimates = self.estimates();
        for (name, value) in ROWS {
            if estimates.iter().all(|estimate| value(estimate) == 0) {
                continue;
            }
            let cells: String = estimates
                .iter()
                .map(|estimate| match value(estimate) {
                    0 => format!("{:>12}", "–"),
                    size => format!("{:>12}", bytes(size)),
                })
                .collect();
            let line = format!("{name:16}{cells}");
            let is_sum = ["weights", "total"].contains(&name);
            output.line(&if is_sum { output.bold(&line) } else { line })?;
        }
        if let Some(ranks) = self.ranks {
            let cells: String =
                estimates.iter().map(|estimate| format!("{:>12}", bytes(estimate.of_rank(ranks)))).collect();
            output.line(&output.bold(&format!("{:16}{cells}", format!("each of {ranks} GPUs"))))?;
            output.remark(&output.dim("They compute each layer together; embeddings and norms are on each."));
        }
        if shape.embeddings_are_f32 {
            output.line("\nThe checkpoint is F32: in int8 its embeddings, head and norms stay so.")?;
        }
        if shape.cache.is_empty() && shape.state == 0 {
            output.line("\nThe family is not implemented: KV cache and activations are not counted.")?;
        }
        output.line(&match self.arguments.gpus {
            None => "\nGPUs needed".to_owned(),
            Some(gpus) => format!("\nFits on {gpus} of (GPUs needed)"),
        })?;
        for (name, memory) in self.gpus() {
            let cells: String = self
                .needed(memory)
                .iter()
                .map(|needed| {
                    let text = match needed {
                        None => "–".to_owned(),
                        Some(needed) if self.arguments.gpus.is_none() => needed.to_string(),
                        Some(needed) if self.is_enough(Some(*needed)) => format!("yes ({needed})"),
                        Some(needed) => format!("no ({needed})"),
                    };
                    format!("{text:>12}")
                })
                .collect();
            output.line(&format!("{name:16}{cells}"))?;
        }
        output.remark(&output.dim(
            "Blocks are spread whole over the GPUs; 0.6 GB of each are the driver's. Attention scores are not counted.",
        ));
        Ok(())
    }
}

/// The paper's table, computed.
fn paper(output: &Output) -> Result<(), Failure> {
    let rows = PAPER_SETUPS.map(|setup| {
        let largest = |precision| setup.largest(precision).unwrap_or_else(|| "–".to_owned());
        (setup, largest(Precision::Int8), largest(Precision::F16))
    });
    if output.json {
        let rows = rows.map(|(setup, int8, fp16)| {
            json!({
                "class": setup.class, "hardware": setup.hardware, "gpus": setup.gpus,
                "gigabytes": setup.gigabytes, "int8": int8, "fp16": fp16,
                "paper": {"int8": setup.int8, "fp16": setup.fp16},
            })
        });
        return output.object(&json!({"setups": rows}));
    }
    output.line(
        "The largest of the paper's models that each machine holds (weights alone, as the paper counts)\n",
    )?;
    output.line(&format!("{:18}{:14}{:>7}  {:14}{}", "", "hardware", "memory", "int8", "fp16"))?;
    for (setup, int8, fp16) in rows {
        let memory = format!("{} GB", setup.gigabytes);
        output.line(&format!("{:18}{:14}{memory:>7}  {int8:14}{fp16}", setup.class, setup.hardware))?;
    }
    output.line(&format!(
        "\nOPT-175B fits wherever BLOOM-176B does. For one model: int8 plan MODEL, where MODEL may be {}",
        Shape::built_in_names().join(", ")
    ))
}

/// A number of weights as text.
fn count(value: u64) -> String {
    let value = real_u64(value);
    if value >= 1e9 { format!("{:.2} billion", value / 1e9) } else { format!("{:.1} million", value / 1e6) }
}
