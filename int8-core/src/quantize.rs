//! Floating-point rows to int8 codes and back (paper §2.1): absmax and zero-point, per tensor, row or
//! group of a row.
//!
//! Over the values that count, of one row, the tensor or a group:
//!
//! | | absmax | zero-point |
//! |---|---|---|
//! | scale `s` (unit of x) | `max|x|` | `(hi − lo)/2`, `lo = min(x, 0)`, `hi = max(x, 0)` |
//! | zero point `z` | 0 | `−round(lo·127/s) − 127`, in [−127, 127] |
//! | code `q` | `round(x·(127/s))` | `round(x·(127/s)) + z`, clamped to [−127, 127] |
//! | value | `q·s/127` | `(q − z)·s/127` |
//!
//! Rounding is half to even, in f32, with one division a row and one multiplication an element, exactly as in bitsandbytes;
//! −128 never occurs. The scale is half the range, so that both encodings share one formula; for absmax it is bitsandbytes'
//! `SCA`/`SCB`.
//!
//! The paper's offset for zero-point is misprinted; in this reading 0 has an exact code, which zero padding and outliers need.
//!
//! A value that counts and is NaN or ±inf makes its row's scale NaN and its codes 0: every output that depends on it is NaN.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use crate::{Element, Error, Outliers, convert};

/// Values of a row that share scale and zero point in [`Granularity::Group`]; the last group of a row may be shorter.
///
/// Smaller than the usual 64 to 128: at 32 a model's loss is not measurable (docs/quality.md), and a sum of 32 products of codes
/// is exact in f32, so that a backend may convert to f32 after each group.
pub const GROUP: usize = 32;

/// 2⁻¹²⁰ ≈ 7.5e-37. A row with a smaller scale counts as zero: `127/s` would overflow f32.
pub const MIN_SCALE: f32 = f32::from_bits((127 - 120) << 23);

/// The map from values to codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// Symmetric: the largest magnitude becomes ±127.
    #[default]
    Absmax,
    /// Affine: the smallest value becomes −127 and the largest 127.
    Zeropoint,
}

/// The values that share one scale and zero point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Granularity {
    /// One for the matrix.
    Tensor,
    /// One a row. On both sides of a product: "vector-wise".
    #[default]
    Row,
    /// One for each [`GROUP`] consecutive values of a row ("group-wise"). Scales are rounded up to bf16: half a bit a value.
    Group,
}

/// The values that count for the scale of a row of `x` with outliers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowMaximum {
    /// Those of the int8 product.
    #[default]
    Paper,
    /// All below the threshold, those of outlier columns included, as in bitsandbytes: `[[7, 1], [5, 1]]` with threshold 6 has
    /// scales `[1, 5]` instead of `[1, 1]`.
    Bitsandbytes,
}

/// A matrix as int8 codes with its quantization parameters (scales, zero points).
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedMatrix {
    codes: Array2<i8>,
    /// `[R·G]`, row-major.
    scales: Array1<f32>,
    zero_points: Array1<i32>,
    groups: usize,
}

/// Groups in a row of K = `inner` values: ⌈K/[`GROUP`]⌉, at least 1.
pub fn group_count(inner: usize) -> usize {
    inner.div_ceil(GROUP).max(1)
}

impl QuantizedMatrix {
    /// Quantises `x [R, K]`, every value counting.
    pub fn quantize<T: Element>(x: ArrayView2<T>, encoding: Encoding, granularity: Granularity) -> Self {
        Self::quantize_without(x, &Outliers::none(x.dim()), encoding, granularity, RowMaximum::Paper)
    }

    /// Quantises `x [R, K]` without its outliers, whose code is that of 0.
    ///
    /// # Panics
    /// If `outliers` belong to a matrix of another shape.
    pub fn quantize_without<T: Element>(
        x: ArrayView2<T>,
        outliers: &Outliers,
        encoding: Encoding,
        granularity: Granularity,
        row_maximum: RowMaximum,
    ) -> Self {
        assert_eq!(
            x.dim(),
            outliers.dim(),
            "QuantizedMatrix::quantize_without: x and its outliers have different shapes"
        );
        let counts = |row: usize, column: usize| match row_maximum {
            RowMaximum::Paper => !outliers.is_outlier(row, column),
            RowMaximum::Bitsandbytes => !outliers.reaches_threshold(row, column),
        };
        let (rows, inner) = x.dim();
        let groups = if granularity == Granularity::Group { group_count(inner) } else { 1 };
        let width = if granularity == Granularity::Group { GROUP } else { inner };
        let mut ranges: Vec<Range> = (0..rows)
            .flat_map(|row| (0..groups).map(move |group| (row, group)))
            .map(|(row, group)| {
                let span = group * width..inner.min((group + 1) * width);
                let counted = span.filter(|column| counts(row, *column));
                Range::of(counted.map(|column| x[[row, column]].to_f32()))
            })
            .collect();
        if granularity == Granularity::Tensor {
            let whole = ranges.iter().fold(Range::EMPTY, |whole, range| whole.union(*range));
            ranges.fill(whole);
        }
        let parameters: Vec<Parameters> =
            ranges.iter().map(|range| Parameters::new(*range, encoding, granularity)).collect();
        let codes = Array2::from_shape_fn(x.dim(), |(row, column)| {
            let parameters = parameters[row * groups + if groups == 1 { 0 } else { column / GROUP }];
            if outliers.is_outlier(row, column) {
                convert::clamped_code(parameters.zero_point)
            } else {
                parameters.code(x[[row, column]].to_f32())
            }
        });
        Self {
            codes,
            scales: parameters.iter().map(|parameters| parameters.scale).collect(),
            zero_points: parameters.iter().map(|parameters| parameters.zero_point).collect(),
            groups,
        }
    }

    /// From codes `[R, K]` with one scale and zero point a row (`[R]`) or a group (`[R·G]`, row-major), as read from a file.
    ///
    /// # Errors
    /// [`Error::Length`] unless both vectors have R or both R·G elements, [`Error::CodeOutOfRange`] for a code of −128,
    /// [`Error::ZeroPointOutOfRange`] for a zero point outside [−127, 127], [`Error::GroupScale`] for a group's scale that is no
    /// bf16 number.
    pub fn from_parts(
        codes: Array2<i8>,
        scales: Array1<f32>,
        zero_points: Option<Array1<i32>>,
    ) -> Result<Self, Error> {
        let groups = parameters_per_row(codes.dim(), scales.len())?;
        let zero_points = zero_points.unwrap_or_else(|| Array1::zeros(scales.len()));
        if zero_points.len() != scales.len() {
            let (expected, found) = (scales.len(), zero_points.len());
            return Err(Error::Length { what: "zero points", expected, found });
        }
        check_group_scales(scales.view(), groups)?;
        if let Some(((row, column), _)) = codes.indexed_iter().find(|(_, code)| **code == i8::MIN) {
            return Err(Error::CodeOutOfRange { what: "codes", row, column });
        }
        if let Some((at, value)) = zero_points.iter().enumerate().find(|(_, z)| !(-127..=127).contains(*z)) {
            return Err(Error::ZeroPointOutOfRange { row: at / groups, value: *value });
        }
        Ok(Self { codes, scales, zero_points, groups })
    }

    /// Codes `[R, K]`, row-major, in [−127, 127].
    pub fn codes(&self) -> ArrayView2<'_, i8> {
        self.codes.view()
    }

    /// `[R·G]`, row-major; tensor granularity repeats its scale. Half the range, in the unit of the values: codes are `scale/127`
    /// apart. For absmax the largest magnitude, bitsandbytes' `SCA`/`SCB`.
    pub fn scales(&self) -> ArrayView1<'_, f32> {
        self.scales.view()
    }

    /// `[R·G]`, in [−127, 127]; 0 for absmax.
    pub fn zero_points(&self) -> ArrayView1<'_, i32> {
        self.zero_points.view()
    }

    /// G, the scales a row: ⌈K/[`GROUP`]⌉ for group granularity, else 1.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Scale and zero point of one code.
    pub fn parameters(&self, row: usize, column: usize) -> (f32, i32) {
        let at = row * self.groups + if self.groups == 1 { 0 } else { column / GROUP };
        (self.scales[at], self.zero_points[at])
    }

    /// Shape `(R, K)`.
    pub fn dim(&self) -> (usize, usize) {
        self.codes.dim()
    }

    /// `(q − z)·s/127`, in f64: exact but for the division.
    pub fn value(&self, row: usize, column: usize) -> f64 {
        let (scale, zero_point) = self.parameters(row, column);
        f64::from(i32::from(self.codes[[row, column]]) - zero_point) * f64::from(scale) / 127.0
    }

    /// All values `[R, K]`, rounded once to `T`.
    pub fn dequantize<T: Element>(&self) -> Array2<T> {
        Array2::from_shape_fn(self.dim(), |(row, column)| T::from_f64(self.value(row, column)))
    }
}

/// A scale ≥ 0 rounded up to bf16, for [`Granularity::Group`]; beyond bf16's range its largest finite number. NaN stays NaN.
pub fn group_scale(scale: f32) -> f32 {
    if scale.is_nan() { scale } else { convert::bf16_up(scale) }
}

/// Scales a row of a matrix `(R, K)` with `found` scales in all: 1 or ⌈K/[`GROUP`]⌉.
///
/// # Errors
/// [`Error::Length`] for another number.
pub fn parameters_per_row((rows, inner): (usize, usize), found: usize) -> Result<usize, Error> {
    let groups = group_count(inner);
    match found {
        _ if found == rows => Ok(1),
        _ if found == rows * groups => Ok(groups),
        _ => Err(Error::Length { what: "scales", expected: rows, found }),
    }
}

/// Checks that groups' scales are bf16 numbers, as backends store them. With one scale a row any f32 is valid.
///
/// # Errors
/// [`Error::GroupScale`].
pub fn check_group_scales(scales: ArrayView1<f32>, groups: usize) -> Result<(), Error> {
    let fits = |scale: f32| scale.is_nan() || group_scale(scale).to_bits() == scale.to_bits();
    match scales.iter().position(|scale| groups > 1 && !fits(*scale)) {
        Some(at) => Err(Error::GroupScale { row: at / groups, group: at % groups, scale: scales[at] }),
        None => Ok(()),
    }
}

/// Smallest and largest value seen, and whether all were finite.
#[derive(Debug, Clone, Copy)]
struct Range {
    low: f32,
    high: f32,
    finite: bool,
}

impl Range {
    /// Every range contains 0: zero-point needs a code for it, absmax does not change.
    const EMPTY: Self = Self { low: 0.0, high: 0.0, finite: true };

    fn of(values: impl Iterator<Item = f32>) -> Self {
        values.fold(Self::EMPTY, |range, value| Self {
            low: range.low.min(value),
            high: range.high.max(value),
            finite: range.finite && value.is_finite(),
        })
    }

    fn union(self, other: Self) -> Self {
        Self {
            low: self.low.min(other.low),
            high: self.high.max(other.high),
            finite: self.finite && other.finite,
        }
    }
}

/// The quantization parameters of one row or group.
#[derive(Debug, Clone, Copy)]
struct Parameters {
    scale: f32,
    /// `127/scale`, or 0 for a row that counts as zero.
    inverse: f32,
    zero_point: i32,
}

impl Parameters {
    fn new(range: Range, encoding: Encoding, granularity: Granularity) -> Self {
        if !range.finite {
            return Self { scale: f32::NAN, inverse: 0.0, zero_point: 0 };
        }
        let scale = match encoding {
            Encoding::Absmax => range.high.max(-range.low),
            // Halved first: the difference may overflow f32.
            Encoding::Zeropoint => range.high * 0.5 - range.low * 0.5,
        };
        // Zeros of either sign give scale +0; `max` may return either.
        let scale = scale.abs();
        let scale = if granularity == Granularity::Group { group_scale(scale) } else { scale };
        if scale < MIN_SCALE {
            return Self { scale, inverse: 0.0, zero_point: 0 };
        }
        let inverse = 127.0 / scale;
        let zero_point = match encoding {
            Encoding::Absmax => 0,
            Encoding::Zeropoint => -convert::small_integer((range.low * inverse).round_ties_even()) - 127,
        };
        Self { scale, inverse, zero_point }
    }

    fn code(self, value: f32) -> i8 {
        if self.inverse == 0.0 {
            return 0;
        }
        if self.zero_point == 0 {
            return convert::code(value * self.inverse);
        }
        let steps = convert::small_integer((value * self.inverse).round_ties_even());
        convert::clamped_code(steps + self.zero_point)
    }
}
