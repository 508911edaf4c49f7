//! GPUs by capacity, and the paper's table of the models that fit.

use super::{Load, Precision, Shape};

/// Bytes of every GPU that driver context and library workspaces take: 500 to 600 MB on current drivers.
pub const RESERVED: u64 = 600_000_000;

/// A GPU model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// Its name.
    pub name: &'static str,
    /// Its capacity as the driver reports it, in MiB.
    pub mebibytes: u64,
}

impl Gpu {
    /// Common ones, largest first.
    pub const ALL: [Self; 14] = [
        Self { name: "B200 180 GB", mebibytes: 183_359 },
        Self { name: "H200 141 GB", mebibytes: 143_771 },
        Self { name: "H100 80 GB", mebibytes: 81_559 },
        Self { name: "A100 80 GB", mebibytes: 81_251 },
        Self { name: "L40S 48 GB", mebibytes: 46_068 },
        Self { name: "A100 40 GB", mebibytes: 40_536 },
        Self { name: "RTX 5090 32 GB", mebibytes: 32_607 },
        Self { name: "V100 32 GB", mebibytes: 32_510 },
        Self { name: "RTX 4090 24 GB", mebibytes: 24_564 },
        Self { name: "RTX 3090 24 GB", mebibytes: 24_268 },
        Self { name: "L4 24 GB", mebibytes: 23_034 },
        Self { name: "RTX 4080 16 GB", mebibytes: 16_376 },
        Self { name: "T4 16 GB", mebibytes: 15_109 },
        Self { name: "RTX 3060 12 GB", mebibytes: 12_288 },
    ];

    /// Its capacity, in bytes.
    pub const fn bytes(self) -> u64 {
        self.mebibytes << 20
    }
}

/// A row of the paper's table of models and hardware (Appendix A, Table 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaperSetup {
    /// Class of user.
    pub class: &'static str,
    /// The machine.
    pub hardware: &'static str,
    /// Number of GPUs.
    pub gpus: u64,
    /// Capacity of one, in units of 10⁹ bytes.
    pub gigabytes: u64,
    /// The largest model in 8 bits, as the paper has it.
    pub int8: &'static str,
    /// The largest model in 16 bits, as the paper has it.
    pub fp16: &'static str,
}

const fn setup(
    class: &'static str,
    hardware: &'static str,
    (gpus, gigabytes): (u64, u64),
    int8: &'static str,
    fp16: &'static str,
) -> PaperSetup {
    PaperSetup { class, hardware, gpus, gigabytes, int8, fp16 }
}

/// The paper's rows.
pub const PAPER_SETUPS: [PaperSetup; 6] = [
    setup("Enterprise", "8x A100", (8, 80), "OPT-175B / BLOOM", "OPT-175B / BLOOM"),
    setup("Enterprise", "8x A100", (8, 40), "OPT-175B / BLOOM", "OPT-66B"),
    setup("Academic server", "8x RTX 3090", (8, 24), "OPT-175B / BLOOM", "OPT-66B"),
    setup("Academic desktop", "4x RTX 3090", (4, 24), "OPT-66B", "OPT-30B"),
    setup("Paid Cloud", "Colab Pro", (1, 15), "OPT-13B", "GPT-J-6B"),
    setup("Free Cloud", "Colab", (1, 12), "T0/T5-11B", "GPT-2 1.3B"),
];

/// The models that the paper's table is about, by their names here, smallest first.
const PAPER_MODELS: [&str; 8] =
    ["GPT-2-1.3B", "GPT-J-6B", "T5-11B", "OPT-13B", "OPT-30B", "OPT-66B", "OPT-175B", "BLOOM-176B"];

impl PaperSetup {
    /// The largest of the paper's models whose weights fit all GPUs together (the paper's criterion), by its name here.
    pub fn largest(&self, precision: Precision) -> Option<String> {
        let capacity = self.gpus * self.gigabytes * 1_000_000_000;
        let fits = |shape: &Shape| shape.estimate(precision, Load::NONE).weights() <= capacity;
        let models = PAPER_MODELS.iter().rev().filter_map(|name| Shape::built_in(name));
        models.into_iter().find(fits).map(|shape| shape.name)
    }
}
