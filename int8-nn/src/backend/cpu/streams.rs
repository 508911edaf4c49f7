//! Alternating updates of several residual streams, and gates of which most are dropped.

use ndarray::{Array1, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2};

use crate::convert;

/// `x = max(x − mean − multiplier·deviation, 0)` in the first `width` columns, row by row.
pub(super) fn sparsify(mut x: ArrayViewMut2<'_, f32>, width: usize, multiplier: f32) {
    for mut row in x.rows_mut() {
        let row = &mut row.as_slice_mut().expect("rows are contiguous")[..width];
        let count = convert::f64_from(row.len());
        let mean = row.iter().copied().map(f64::from).sum::<f64>() / count;
        let variance = row.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
        let cutoff = convert::f32_from(mean) + convert::f32_from(variance.sqrt()) * multiplier;
        // The maximum with a NaN must stay one.
        row.iter_mut().for_each(|value| *value = if *value < cutoff { 0.0 } else { *value - cutoff });
    }
}

/// The numbers of one row: `matrix·tanh(modes)`.
fn coefficients(matrix: ArrayView2<'_, f32>, modes: ArrayView1<'_, f32>) -> Array1<f32> {
    matrix.dot(&modes.mapv(f32::tanh))
}

/// `xₛ += Σ_t c[s·S + t]·x_t`.
pub(super) fn predict(
    mut streams: Vec<ArrayViewMut2<'_, f32>>,
    modes: ArrayView2<'_, f32>,
    prediction: ArrayView2<'_, f32>,
) {
    let count = streams.len();
    for (row, modes) in modes.rows().into_iter().enumerate() {
        let all = coefficients(prediction, modes);
        let mut rows: Vec<ArrayViewMut1<'_, f32>> =
            streams.iter_mut().map(|stream| stream.row_mut(row)).collect();
        let width = rows.first().map_or(0, |row| row.len());
        let mut before = vec![0.0; count];
        for column in 0..width {
            before.iter_mut().zip(&rows).for_each(|(value, row)| *value = row[column]);
            for (stream, row) in rows.iter_mut().enumerate() {
                let of_stream = all.iter().skip(stream * count);
                let sum: f32 = of_stream.zip(&before).map(|(factor, value)| factor * value).sum();
                row[column] += sum;
            }
        }
    }
}

/// `xₛ += (1 + c[s])·(computed − x₀)`.
pub(super) fn correct(
    mut streams: Vec<ArrayViewMut2<'_, f32>>,
    computed: ArrayView2<'_, f32>,
    modes: ArrayView2<'_, f32>,
    correction: ArrayView2<'_, f32>,
) {
    for ((row, modes), computed) in modes.rows().into_iter().enumerate().zip(computed.rows()) {
        let factors = coefficients(correction, modes);
        let Some(first) = streams.first() else { return };
        let difference = &computed - &first.row(row);
        for (stream, factor) in streams.iter_mut().zip(&factors) {
            stream.row_mut(row).scaled_add(1.0 + factor, &difference);
        }
    }
}

/// `x = x·√(mean(y²)/max(mean(x²), 1e-5))`, row by row.
pub(super) fn match_magnitude(mut x: ArrayViewMut2<'_, f32>, y: ArrayView2<'_, f32>) {
    let mean_square = |row: ArrayView1<'_, f32>| {
        let sum: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
        sum / convert::f64_from(row.len().max(1))
    };
    for (mut x, y) in x.rows_mut().into_iter().zip(y.rows()) {
        let own = mean_square(x.view());
        let own = if own < 1e-5 { 1e-5 } else { own };
        x *= convert::f32_from((mean_square(y) / own).sqrt());
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn gates_below_the_cutoff_become_zero() {
        let mut x = array![[1.0_f32, 2.0, 3.0, 9.0], [f32::NAN, 1.0, 1.0, 9.0]];
        sparsify(x.view_mut(), 3, 0.5);
        let cutoff = 2.0 + 0.5 * (2.0_f32 / 3.0).sqrt();
        assert!((x[[0, 2]] - (3.0 - cutoff)).abs() < 1e-6 && x[[0, 1]] == 0.0 && x[[0, 0]] == 0.0);
        assert_eq!(x[[0, 3]], 9.0, "only the first columns");
        assert!(x[[1, 0]].is_nan() && x[[1, 1]].is_nan());
    }

    #[test]
    fn streams_are_mixed_and_corrected() {
        let mut a = array![[1.0_f32, -2.0]];
        let mut b = array![[3.0_f32, 0.5]];
        let modes = array![[0.3_f32, -0.7]];
        let matrix = array![[0.1_f32, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]];
        predict(vec![a.view_mut(), b.view_mut()], modes.view(), matrix.view());
        let t = [0.3_f32.tanh(), (-0.7_f32).tanh()];
        let c = |row: usize| matrix[[row, 0]] * t[0] + matrix[[row, 1]] * t[1];
        let expected = Array2::from_shape_vec(
            (2, 2),
            vec![
                1.0 + c(0) * 1.0 + c(1) * 3.0,
                -2.0 + c(0) * -2.0 + c(1) * 0.5,
                3.0 + c(2) * 1.0 + c(3) * 3.0,
                0.5 + c(2) * -2.0 + c(3) * 0.5,
            ],
        )
        .expect("four");
        for column in 0..2 {
            assert!((a[[0, column]] - expected[[0, column]]).abs() < 1e-6);
            assert!((b[[0, column]] - expected[[1, column]]).abs() < 1e-6);
        }
        let (before, other) = (a.clone(), b.clone());
        let computed = array![[5.0_f32, 5.0]];
        correct(
            vec![a.view_mut(), b.view_mut()],
            computed.view(),
            modes.view(),
            matrix.slice(ndarray::s![..2, ..]),
        );
        for column in 0..2 {
            let difference = 5.0 - before[[0, column]];
            assert!((a[[0, column]] - (before[[0, column]] + (1.0 + c(0)) * difference)).abs() < 1e-5);
            assert!((b[[0, column]] - (other[[0, column]] + (1.0 + c(1)) * difference)).abs() < 1e-5);
        }
        match_magnitude(a.view_mut(), array![[3.0_f32, 4.0]].view());
        assert!((a.mapv(|x| x * x).sum() - 25.0).abs() < 1e-4);
    }
}
