//! Every kernel of this machine against the reference, over the corpus and random cases.
//!
//! Codes, sums and accumulators must be *equal*; results must lie inside the reference's derived bound.

use half::{bf16, f16};
use int8_core::bound::{Arithmetic, compare};
use int8_core::corpus::{self, Case, Random};
use int8_core::{Element, Scheme, Weight};
use ndarray::{Array2, ArrayView2};

use crate::activations::LinearStats;
use crate::epilogue::outliers::{ExactColumn, ExactColumns, OutlierWeights};
use crate::error::Error;
use crate::kernel::Kernel;
use crate::linear::{int8_product, linear};
use crate::matrix::Store;
use crate::pack::weight::PackedWeight;

/// What came out for one kernel.
#[derive(Debug, Clone)]
pub struct Report {
    /// The kernel.
    pub kernel: Kernel,
    /// Layers computed: each case in three element types, with exact and with dequantised outlier weights.
    pub cases: usize,
    /// The largest error as a share of its bound.
    pub worst_share: f64,
    /// What was wrong, one line each.
    pub failures: Vec<String>,
}

/// Runs every available kernel over the corpus and `random_cases` seeded random cases.
pub fn run(random_cases: u64) -> Vec<Report> {
    let named = corpus::cases().into_iter().chain(corpus::group_cases());
    let random =
        (0..random_cases).map(corpus::random).chain((0..random_cases / 2).map(corpus::random_groups));
    let cases: Vec<Case> = named.chain(random).chain(long_and_tall()).collect();
    Kernel::available().into_iter().map(|kernel| run_kernel(kernel, &cases)).collect()
}

/// Where a kernel goes through K in pieces, and where the input of a task is cut to what a cache holds.
fn long_and_tall() -> impl Iterator<Item = Case> {
    let shapes = [(33, 33, 1025), (70, 70, 1100), (40, 34, 2200), (530, 34, 2100)];
    shapes.into_iter().zip([Scheme::LlmInt8Absmax, Scheme::LlmInt8Zeropoint].into_iter().cycle()).map(
        |((m, n, k), scheme)| {
            let mut random = Random::new(u64::try_from(k).unwrap_or_default());
            let mut x = random.matrix(m, k, 1.0);
            x.column_mut(k - 1).fill(7.5);
            let name = format!("{m}×{n}×{k} / {}", scheme.name());
            Case { name, x, w: random.matrix(n, k, 0.02), bias: None, config: scheme.config() }
        },
    )
}

/// Runs one kernel over these cases.
pub fn run_kernel(kernel: Kernel, cases: &[Case]) -> Report {
    let mut report = Report { kernel, cases: 0, worst_share: 0.0, failures: Vec::new() };
    for case in cases {
        check::<f32>(&mut report, case);
        check::<f16>(&mut report, case);
        check::<bf16>(&mut report, case);
    }
    report
}

/// Exact columns out of a matrix in memory.
struct Columns<'a, T>(ArrayView2<'a, T>);

impl<T: Element> ExactColumns for Columns<'_, T> {
    fn columns(
        &self,
        columns: &[usize],
    ) -> Result<Vec<ExactColumn>, Box<dyn std::error::Error + Send + Sync>> {
        let column = |k: &usize| ExactColumn::F32(self.0.column(*k).iter().map(|v| v.to_f32()).collect());
        Ok(columns.iter().map(column).collect())
    }
}

fn check<T: Element>(report: &mut Report, case: &Case) {
    let (x, w) = (case.x.mapv(T::from_f32), case.w.mapv(T::from_f32));
    for exact in [false, true] {
        report.cases += 1;
        let outlier_weights = if exact { "exact" } else { "dequantised" };
        let name = format!("{}, {}, {outlier_weights} outlier weights", case.name, T::NAME);
        match check_one(report.kernel, case, x.view(), w.view(), exact) {
            Ok((share, wrong)) => {
                report.worst_share = report.worst_share.max(share);
                report.failures.extend(wrong.map(|wrong| format!("{name}: {wrong}")));
            }
            Err(error) => report.failures.push(format!("{name}: {error}")),
        }
    }
}

/// The worst share of the bound, and what is wrong, if anything.
fn check_one<T: Element>(
    kernel: Kernel,
    case: &Case,
    x: ArrayView2<'_, T>,
    w: ArrayView2<'_, T>,
    exact: bool,
) -> Result<(f64, Option<String>), Error> {
    let (config, bias) = (&case.config, case.bias.as_ref());
    let mut reference_weight = Weight::quantize(w, config);
    if exact {
        reference_weight = reference_weight.with_all_columns_exact(w)?;
    }
    let reference = int8_core::linear(x, &reference_weight, bias.map(|bias| bias.view()), config)?;

    let weight = PackedWeight::quantize(kernel, w, config.weight_encoding, config.weight_granularity)?;
    let quantized = weight.to_quantized()?;
    if let Some(wrong) = different_weight(&quantized, reference_weight.quantized()) {
        return Ok((0.0, Some(wrong)));
    }
    if let Some(wrong) =
        different_integers(&int8_product(reference.input.codes(), &weight)?, &reference.accumulator)
    {
        return Ok((0.0, Some(wrong)));
    }
    let columns = Columns(w);
    let source = if exact { OutlierWeights::Exact(&columns) } else { OutlierWeights::Dequantized };
    let mut y = Array2::from_elem((x.nrows(), w.nrows()), T::from_f32(f32::NAN));
    let bias_slice = bias.map(|bias| bias.to_vec());
    let stats = linear(x, &weight, source, bias_slice.as_deref(), config, Store::Overwrite, y.view_mut())?;

    let expected = LinearStats {
        outlier_columns: reference.outliers.columns().len(),
        outlier_values: (0..x.nrows())
            .flat_map(|m| reference.outliers.columns().iter().map(move |k| (m, *k)))
            .filter(|(m, k)| reference.outliers.is_outlier(*m, *k))
            .count(),
    };
    let comparison = compare(y.view(), &reference, bias.map(|bias| bias.view()), Arithmetic::F32);
    let wrong = if stats != expected {
        Some(format!("outliers {stats:?}, expected {expected:?}"))
    } else if !comparison.within_bound() {
        let at = comparison.at;
        Some(format!(
            "y{at:?} = {:?}, expected {:e}: {:.2} of the bound",
            y[at], reference.exact[at], comparison.worst_share
        ))
    } else {
        None
    };
    Ok((comparison.worst_share, wrong))
}

/// The first difference between two quantised matrices.
fn different_weight(
    found: &int8_core::QuantizedMatrix,
    expected: &int8_core::QuantizedMatrix,
) -> Option<String> {
    let bits = |scales: ndarray::ArrayView1<'_, f32>| -> Vec<u32> {
        scales.iter().map(|s| if s.is_nan() { f32::NAN.to_bits() } else { s.to_bits() }).collect()
    };
    if let Some((at, code)) = found.codes().indexed_iter().find(|(at, code)| expected.codes()[*at] != **code)
    {
        return Some(format!("weight code {at:?} is {code}, expected {}", expected.codes()[at]));
    }
    if bits(found.scales()) != bits(expected.scales()) {
        return Some(format!("weight scales {}, expected {}", found.scales(), expected.scales()));
    }
    let same = found.zero_points() == expected.zero_points();
    (!same)
        .then(|| format!("weight zero points {}, expected {}", found.zero_points(), expected.zero_points()))
}

/// The first difference between two integer matrices.
fn different_integers(found: &Array2<i32>, expected: &Array2<i32>) -> Option<String> {
    if found.dim() != expected.dim() {
        return Some(format!("accumulator of shape {:?}, expected {:?}", found.dim(), expected.dim()));
    }
    let difference = found.indexed_iter().find(|(at, value)| expected[*at] != **value);
    difference.map(|(at, value)| format!("accumulator {at:?} is {value}, expected {}", expected[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A comparator is trusted only after it has been seen to fail on one unit, in each direction.
    #[test]
    fn comparators_fail_on_one_unit() {
        let case = corpus::random(3);
        let expected = int8_core::QuantizedMatrix::quantize(
            case.w.view(),
            case.config.weight_encoding,
            case.config.weight_granularity,
        );
        assert_eq!(different_weight(&expected, &expected), None);
        let product =
            int8_core::product::int8_product(expected.codes(), expected.codes()).expect("a valid product");
        assert_eq!(different_integers(&product, &product), None);
        for sign in [-1, 1] {
            let mut off = product.clone();
            off[[0, 0]] += sign;
            assert!(different_integers(&off, &product).is_some());

            let mut codes = expected.codes().to_owned();
            let code = &mut codes[[0, 0]];
            *code +=
                if *code == 127 || *code == -127 { -code.signum() } else { i8::try_from(sign).expect("one") };
            let rebuilt = |codes, scales: ndarray::Array1<f32>, zeros| {
                int8_core::QuantizedMatrix::from_parts(codes, scales, Some(zeros)).expect("valid parts")
            };
            let (scales, zeros) = (expected.scales().to_owned(), expected.zero_points().to_owned());
            assert!(different_weight(&rebuilt(codes, scales.clone(), zeros.clone()), &expected).is_some());
            let ulp = scales.mapv(|s| f32::from_bits(s.to_bits().wrapping_add_signed(sign)));
            let codes = || expected.codes().to_owned();
            assert!(different_weight(&rebuilt(codes(), ulp, zeros.clone()), &expected).is_some());
            assert!(different_weight(&rebuilt(codes(), scales, zeros + sign), &expected).is_some());
        }
    }

    #[test]
    fn every_kernel_agrees_with_the_reference() {
        let mut failures = Vec::new();
        for report in run(300) {
            println!(
                "{}: {} cases, worst {:.3} of the bound",
                report.kernel, report.cases, report.worst_share
            );
            assert!(report.cases > 1800);
            failures.extend(report.failures.iter().map(|failure| format!("{}: {failure}", report.kernel)));
        }
        assert!(
            failures.is_empty(),
            "{} failures:\n{}",
            failures.len(),
            failures[..failures.len().min(20)].join("\n")
        );
    }
}
