//! The integer product and its dequantisation (paper §2.2, eq. 4–7).

use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis};

use crate::{Error, GROUP, QuantizedMatrix, convert};

/// Largest K for which `Σ_k q_a·q_b` of codes in [−127, 127] cannot overflow an i32: ⌊(2³¹ − 1)/127²⌋ = 133 144.
pub const MAX_INNER: usize = 2_147_483_647 / (127 * 127);

/// `q_a [M, K] · q_wᵀ [K, N] → i32 [M, N]`; `W` is stored `[N, K]`. Exact.
///
/// # Errors
/// [`Error::InnerDimension`] when the two K differ, [`Error::AccumulatorOverflow`] when K exceeds [`MAX_INNER`],
/// [`Error::CodeOutOfRange`] for a code of −128.
pub fn int8_product(a: ArrayView2<i8>, w: ArrayView2<i8>) -> Result<Array2<i32>, Error> {
    let ((rows, inner), (outputs, w_inner)) = (a.dim(), w.dim());
    if inner != w_inner {
        return Err(Error::InnerDimension {
            operation: "int8_product",
            rows,
            x_inner: inner,
            outputs,
            w_inner,
        });
    }
    if inner > MAX_INNER {
        return Err(Error::AccumulatorOverflow { inner, max: MAX_INNER });
    }
    for (what, codes) in [("x", a), ("W", w)] {
        if let Some(((row, column), _)) = codes.indexed_iter().find(|(_, code)| **code == i8::MIN) {
            return Err(Error::CodeOutOfRange { what, row, column });
        }
    }
    Ok(Array2::from_shape_fn((rows, outputs), |(m, n)| {
        a.row(m).iter().zip(w.row(n)).map(|(a, w)| i32::from(*a) * i32::from(*w)).sum()
    }))
}

/// `Σ_k (q_a − z_a)(q_w − z_w) = acc − z_w·Σq_a − z_a·Σq_w + K·z_a·z_w`: `i64 [M, N]`, exact.
///
/// # Errors
/// [`Error::Shape`] when `acc` is not `[M, N]`, [`Error::Length`] for group granularity, which needs [`group_products`].
pub fn correct_zero_points(
    acc: ArrayView2<i32>,
    a: &QuantizedMatrix,
    w: &QuantizedMatrix,
) -> Result<Array2<i64>, Error> {
    let expected = (a.dim().0, w.dim().0);
    if acc.dim() != expected {
        return Err(Error::Shape { what: "accumulator", expected, found: acc.dim() });
    }
    for matrix in [a, w] {
        if matrix.groups() != 1 {
            let (expected, found) = (matrix.dim().0, matrix.scales().len());
            return Err(Error::Length { what: "scales", expected, found });
        }
    }
    let inner = convert::length(a.dim().1);
    let (a_sums, w_sums) = (code_sums(a.codes()), code_sums(w.codes()));
    Ok(Array2::from_shape_fn(expected, |(m, n)| {
        let (z_a, z_w) = (i64::from(a.zero_points()[m]), i64::from(w.zero_points()[n]));
        i64::from(acc[[m, n]]) - z_w * a_sums[m] - z_a * w_sums[n] + inner * z_a * z_w
    }))
}

/// `Σ_{k ∈ g} (q_a − z_a)(q_w − z_w)` for each group g of K: `i64 [G, M, N]`, exact. G is the larger of both sides' scales a row.
///
/// # Errors
/// As [`int8_product`].
pub fn group_products(a: &QuantizedMatrix, w: &QuantizedMatrix) -> Result<Array3<i64>, Error> {
    let groups = a.groups().max(w.groups());
    if groups == 1 {
        let acc = int8_product(a.codes(), w.codes())?;
        return Ok(correct_zero_points(acc.view(), a, w)?.insert_axis(Axis(0)));
    }
    let ((rows, inner), (outputs, w_inner)) = (a.dim(), w.dim());
    if inner != w_inner {
        let operation = "group_products";
        return Err(Error::InnerDimension { operation, rows, x_inner: inner, outputs, w_inner });
    }
    let steps = |matrix: &QuantizedMatrix, row: usize, k: usize| {
        i64::from(matrix.codes()[[row, k]]) - i64::from(matrix.parameters(row, k).1)
    };
    Ok(Array3::from_shape_fn((groups, rows, outputs), |(group, m, n)| {
        (group * GROUP..inner.min((group + 1) * GROUP)).map(|k| steps(a, m, k) * steps(w, n, k)).sum()
    }))
}

/// `Σ_g products[g, m, n]·(s_a[m, g]/127)·(s_w[n, g]/127)` `[M, N]` in f64 (eq. 5 by group), and the sum of the terms'
/// magnitudes, to which its rounding error is proportional. A NaN scale makes its row or column NaN.
///
/// # Panics
/// If the products are not those of `a` and `w`.
pub fn dequantize_groups(
    products: ArrayView3<i64>,
    a: &QuantizedMatrix,
    w: &QuantizedMatrix,
) -> (Array2<f64>, Array2<f64>) {
    let (groups, rows, outputs) = products.dim();
    let mut sums = (Array2::zeros((rows, outputs)), Array2::zeros((rows, outputs)));
    for ((group, m, n), product) in products.indexed_iter() {
        let scale = |matrix: &QuantizedMatrix, row: usize| {
            let of_row = matrix.groups();
            assert!(of_row == 1 || of_row == groups, "products of other matrices");
            f64::from(matrix.scales()[row * of_row + if of_row == 1 { 0 } else { group }]) / 127.0
        };
        let term = convert::i64_to_f64(*product) * (scale(a, m) * scale(w, n));
        sums.0[[m, n]] += term;
        sums.1[[m, n]] += term.abs();
    }
    sums
}

/// `acc[m, n]·(s_a[m]/127)·(s_w[n]/127)` `[M, N]` in f64 (eq. 5). A NaN scale makes its row or column NaN.
///
/// # Errors
/// [`Error::Shape`] when the scales do not match the accumulator.
pub fn dequantize(
    acc: ArrayView2<i64>,
    a_scales: ArrayView1<f32>,
    w_scales: ArrayView1<f32>,
) -> Result<Array2<f64>, Error> {
    let expected = (a_scales.len(), w_scales.len());
    if acc.dim() != expected {
        return Err(Error::Shape { what: "accumulator", expected, found: acc.dim() });
    }
    Ok(Array2::from_shape_fn(expected, |(m, n)| {
        let factor = (f64::from(a_scales[m]) / 127.0) * (f64::from(w_scales[n]) / 127.0);
        convert::i64_to_f64(acc[[m, n]]) * factor
    }))
}

/// `Σ_k q[row, k]` for each row.
pub fn code_sums(codes: ArrayView2<i8>) -> Array1<i64> {
    codes.rows().into_iter().map(|row| row.iter().map(|code| i64::from(*code)).sum()).collect()
}
