//! Test inputs of every backend: named cases that break implementations, and seeded random ones. Values are f32; tests round
//! them to the type they need.

use ndarray::{Array1, Array2};

use crate::{
    Config, Encoding, Granularity, OutlierGranularity, OutlierRule, RowMaximum, RowStatistic, convert,
};

/// One linear layer to compute.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it tests.
    pub name: String,
    /// Input `[M, K]`.
    pub x: Array2<f32>,
    /// Weight `[N, K]`.
    pub w: Array2<f32>,
    /// Bias `[N]`.
    pub bias: Option<Array1<f32>>,
    /// Settings.
    pub config: Config,
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): seedable, the same on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator whose sequence depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn uniform(&mut self) -> f32 {
        convert::unit_interval(self.bits())
    }

    /// Approximately normal, mean 0, variance 1: a sum of twelve uniforms.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    /// One of the values.
    ///
    /// # Panics
    /// If there are none.
    pub fn choose<T: Copy>(&mut self, values: &[T]) -> T {
        values[convert::index_below(self.bits(), values.len())]
    }

    /// A matrix of normal values times `scale`.
    pub fn matrix(&mut self, rows: usize, columns: usize, scale: f32) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || self.normal() * scale)
    }
}

/// A random case, determined by `seed`. Shapes are small (M, N ≤ 40, K ≤ 300) and at the edges of kernels' tiles.
pub fn random(seed: u64) -> Case {
    let mut random = Random::new(seed);
    let rows = random.choose(&[1, 1, 2, 3, 5, 8, 15, 16, 17, 33]);
    let outputs = random.choose(&[1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 40]);
    let inner = random.choose(&[1, 3, 4, 15, 16, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 256, 300]);
    let scale = random.choose(&[1e-3_f32, 0.5, 1.0, 1.0, 3.0]);
    let mut x = random.matrix(rows, inner, scale);
    let w_scale = random.choose(&[0.02_f32, 0.02, 1.0]);
    let w = random.matrix(outputs, inner, w_scale);

    // Outlier columns as in models (one-sided, large, in every row), or single values.
    let share = random.choose(&[0.0_f32, 0.0, 0.01, 0.1, 0.5, 1.0]);
    let whole_columns = random.choose(&[true, false]);
    for column in 0..inner {
        let outlier_column = random.uniform() < share;
        for row in 0..rows {
            if whole_columns && outlier_column {
                x[[row, column]] = -20.0 - 10.0 * random.uniform();
            } else if !whole_columns && random.uniform() < share {
                x[[row, column]] = 8.0 * random.normal();
            }
        }
    }
    let bias =
        random.choose(&[true, false]).then(|| Array1::from_shape_simple_fn(outputs, || random.normal()));
    Case { name: format!("random {seed}"), x, w, bias, config: random_config(&mut random) }
}

/// [`random`] with group granularity on one side or both, for backends that support it.
pub fn random_groups(seed: u64) -> Case {
    use Granularity::{Group, Row, Tensor};
    let mut case = random(seed);
    let sides =
        [(Group, Group), (Group, Group), (Group, Row), (Row, Group), (Tensor, Group), (Group, Tensor)];
    let (input_granularity, weight_granularity) = Random::new(!seed).choose(&sides);
    case.config = Config { input_granularity, weight_granularity, ..case.config };
    case.name = format!("random {seed} in groups");
    case
}

fn random_config(random: &mut Random) -> Config {
    Config {
        input_encoding: random.choose(&[Encoding::Absmax, Encoding::Absmax, Encoding::Zeropoint]),
        weight_encoding: random.choose(&[Encoding::Absmax, Encoding::Absmax, Encoding::Zeropoint]),
        input_granularity: random.choose(&[Granularity::Row, Granularity::Row, Granularity::Tensor]),
        weight_granularity: random.choose(&[Granularity::Row, Granularity::Row, Granularity::Tensor]),
        rule: random.choose(&[
            OutlierRule::None,
            OutlierRule::Absolute(6.0),
            OutlierRule::Absolute(6.0),
            OutlierRule::Absolute(2.5),
            OutlierRule::RelativeToRow { tau: 8.0, statistic: RowStatistic::MedianAbs },
            OutlierRule::RelativeToRow { tau: 5.0, statistic: RowStatistic::MeanAbs },
        ]),
        outlier_granularity: random.choose(&[OutlierGranularity::Column, OutlierGranularity::Value]),
        row_maximum: random.choose(&[RowMaximum::Paper, RowMaximum::Paper, RowMaximum::Bitsandbytes]),
    }
}

/// The named cases, each under every setting.
pub fn cases() -> Vec<Case> {
    named(settings())
}

/// The named cases with group granularity, for backends that support it.
pub fn group_cases() -> Vec<Case> {
    named(group_settings())
}

fn named(settings: Vec<(&'static str, Config)>) -> Vec<Case> {
    let mut cases = Vec::new();
    for (setting, config) in settings {
        for (name, x, w, bias) in operands() {
            cases.push(Case { name: format!("{name} / {setting}"), x, w, bias, config });
        }
    }
    cases
}

fn settings() -> Vec<(&'static str, Config)> {
    let llm_int8 = crate::Scheme::LlmInt8Absmax.config();
    let mut settings: Vec<(&'static str, Config)> =
        crate::Scheme::ALL.iter().map(|scheme| (scheme.name(), scheme.config())).collect();
    settings.push(("values", Config { outlier_granularity: OutlierGranularity::Value, ..llm_int8 }));
    settings.push(("bitsandbytes row maximum", Config { row_maximum: RowMaximum::Bitsandbytes, ..llm_int8 }));
    settings.push((
        "zeropoint values",
        Config {
            input_encoding: Encoding::Zeropoint,
            weight_encoding: Encoding::Zeropoint,
            outlier_granularity: OutlierGranularity::Value,
            row_maximum: RowMaximum::Bitsandbytes,
            ..llm_int8
        },
    ));
    settings.push((
        "relative to median, values",
        Config {
            rule: OutlierRule::RelativeToRow { tau: 10.0, statistic: RowStatistic::MedianAbs },
            outlier_granularity: OutlierGranularity::Value,
            ..llm_int8
        },
    ));
    settings.push((
        "relative to mean, columns",
        Config {
            rule: OutlierRule::RelativeToRow { tau: 4.0, statistic: RowStatistic::MeanAbs },
            ..llm_int8
        },
    ));
    settings
}

fn group_settings() -> Vec<(&'static str, Config)> {
    let llm_int8 = crate::Scheme::LlmInt8Absmax.config();
    let groups = Config {
        input_encoding: Encoding::Zeropoint,
        input_granularity: Granularity::Group,
        weight_granularity: Granularity::Group,
        rule: OutlierRule::RelativeToRow { tau: 10.0, statistic: RowStatistic::MedianAbs },
        outlier_granularity: OutlierGranularity::Value,
        ..llm_int8
    };
    let of_x =
        Config { input_granularity: Granularity::Group, row_maximum: RowMaximum::Bitsandbytes, ..llm_int8 };
    let of_w = Config { weight_encoding: Encoding::Zeropoint, input_granularity: Granularity::Row, ..groups };
    vec![
        ("groups", groups),
        ("groups, no rule", Config { rule: OutlierRule::None, ..groups }),
        ("groups of x alone, columns", of_x),
        ("groups of W alone, both with zero points", of_w),
    ]
}

type Operands = (&'static str, Array2<f32>, Array2<f32>, Option<Array1<f32>>);

fn operands() -> Vec<Operands> {
    let mut random = Random::new(0x11A8);
    let mut list: Vec<Operands> = Vec::new();
    let bias =
        |n: usize| Some(Array1::from_shape_fn(n, |n| convert::f64_to_f32(convert::count(n) * 0.5 - 1.0)));

    list.push(("no rows", Array2::zeros((0, 8)), random.matrix(4, 8, 1.0), bias(4)));
    list.push(("no outputs", random.matrix(3, 8, 1.0), Array2::zeros((0, 8)), None));
    list.push(("no inner dimension", Array2::zeros((2, 0)), Array2::zeros((3, 0)), bias(3)));
    list.push(("one by one by one", Array2::from_elem((1, 1), -3.0), Array2::from_elem((1, 1), 0.5), None));
    list.push(("zeros", Array2::zeros((3, 40)), random.matrix(5, 40, 1.0), bias(5)));
    list.push(("a zero row of x and of W", zero_row(&mut random), zero_row(&mut random), None));
    list.push((
        "constant rows",
        Array2::from_elem((4, 33), 2.5),
        Array2::from_elem((3, 33), -0.125),
        bias(3),
    ));
    list.push((
        "all positive",
        random.matrix(4, 70, 1.0).mapv(f32::abs),
        random.matrix(6, 70, 1.0).mapv(f32::abs),
        None,
    ));
    list.push((
        "all negative",
        random.matrix(4, 70, 1.0).mapv(|v| -v.abs() - 1.0),
        random.matrix(6, 70, 1.0),
        bias(6),
    ));
    list.push(("saturated signs", signs(5, 96), signs(17, 96), None));
    list.push(("ties of the rounding", ties(64), ties(64), None));
    list.push(("tiny values", random.matrix(3, 50, 1e-30), random.matrix(3, 50, 1e-6), None));
    list.push((
        "rows below the smallest scale",
        random.matrix(3, 50, 1e-38),
        random.matrix(3, 50, 1.0),
        bias(3),
    ));
    list.push(("rows of very different size", sizes(&mut random), random.matrix(9, 48, 0.05), None));
    list.push((
        "the note of bitsandbytes' row maximum",
        rows(&[[7.0, 1.0], [5.0, 1.0]]),
        rows(&[[1.0, 2.0], [-2.0, 1.0]]),
        None,
    ));
    list.push((
        "outlier exactly at the threshold",
        rows(&[[6.0, 5.999], [-6.0, 1.0]]),
        rows(&[[0.5, 0.25], [-0.5, 1.0]]),
        bias(2),
    ));
    list.push((
        "every value an outlier",
        random.matrix(4, 36, 1.0).mapv(|v| v + 40.0),
        random.matrix(7, 36, 0.02),
        bias(7),
    ));
    list.push((
        "one-sided outlier columns",
        outlier_columns(&mut random),
        random.matrix(20, 130, 0.02),
        bias(20),
    ));
    list.push((
        "mostly zeros, as after a ReLU",
        random.matrix(6, 90, 2.0).mapv(|v| (v - 2.0).max(0.0)),
        random.matrix(8, 90, 0.1),
        None,
    ));
    list.push((
        "NaN in one row of x",
        with(random.matrix(4, 20, 1.0), (2, 7), f32::NAN),
        random.matrix(5, 20, 1.0),
        None,
    ));
    list.push((
        "+inf in one row of x",
        with(random.matrix(4, 20, 1.0), (1, 3), f32::INFINITY),
        random.matrix(5, 20, 1.0),
        bias(5),
    ));
    list.push((
        "-inf against a zero weight",
        with(random.matrix(2, 20, 1.0), (0, 0), f32::NEG_INFINITY),
        with(random.matrix(3, 20, 1.0), (1, 0), 0.0),
        None,
    ));
    list.push((
        "NaN in one row of W",
        random.matrix(4, 20, 1.0),
        with(random.matrix(5, 20, 1.0), (3, 19), f32::NAN),
        None,
    ));
    for (name, m, n, k) in [
        ("K below a tile", 17, 33, 15),
        ("K at a tile", 16, 32, 64),
        ("K above a tile", 15, 31, 65),
        ("K of two tiles and one", 2, 18, 129),
        ("one row, many outputs", 1, 97, 256),
        ("long K", 2, 3, 4099),
    ] {
        list.push((name, random.matrix(m, k, 1.5), random.matrix(n, k, 0.02), bias(n)));
    }
    list
}

fn rows<const C: usize>(values: &[[f32; C]]) -> Array2<f32> {
    Array2::from_shape_fn((values.len(), C), |(row, column)| values[row][column])
}

fn zero_row(random: &mut Random) -> Array2<f32> {
    let mut matrix = random.matrix(5, 31, 1.0);
    matrix.row_mut(2).fill(0.0);
    matrix
}

/// ±1 everywhere: codes ±127, the largest accumulators.
fn signs(rows: usize, columns: usize) -> Array2<f32> {
    Array2::from_shape_fn(
        (rows, columns),
        |(row, column)| if (row * 5 + column * 3) % 7 < 4 { 1.0 } else { -1.0 },
    )
}

/// Rows of largest magnitude 127, so that codes are 1 apart; the other values are half-way between codes.
fn ties(columns: usize) -> Array2<f32> {
    Array2::from_shape_fn((2, columns), |(row, column)| match column {
        0 => 127.0,
        _ => convert::f64_to_f32((convert::count(column) - 31.5) * if row == 0 { 1.0 } else { -1.0 }),
    })
}

fn sizes(random: &mut Random) -> Array2<f32> {
    let mut matrix = random.matrix(6, 48, 1.0);
    for (row, scale) in [1e-4, 1e-2, 1.0, 3.0, 1e2, 1e4].into_iter().enumerate() {
        matrix.row_mut(row).mapv_inplace(|v| v * scale);
    }
    matrix
}

fn outlier_columns(random: &mut Random) -> Array2<f32> {
    let mut matrix = random.matrix(19, 130, 0.7);
    for column in [3, 64, 129] {
        matrix.column_mut(column).mapv_inplace(|v| -45.0 + v);
    }
    matrix
}

fn with(mut matrix: Array2<f32>, at: (usize, usize), value: f32) -> Array2<f32> {
    matrix[at] = value;
    matrix
}
