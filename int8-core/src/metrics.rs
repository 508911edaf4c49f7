//! Error metrics. Sums are in f64, in order; a NaN anywhere makes the metric NaN.

/// `‖actual − reference‖₂ / ‖reference‖₂`. 0 when both are zero, +∞ when only the reference is.
///
/// # Panics
/// If the lengths differ, here and in every metric of this module.
pub fn relative_l2(actual: &[f32], reference: &[f32]) -> f64 {
    let (error, signal) = energies(actual, reference);
    if error == 0.0 { 0.0 } else { (error / signal).sqrt() }
}

/// Signal-to-quantisation-noise ratio in dB, `10·log₁₀(Σ reference² / Σ (actual − reference)²)`; +∞ when equal.
pub fn sqnr_db(actual: &[f32], reference: &[f32]) -> f64 {
    let (error, signal) = energies(actual, reference);
    if error == 0.0 { f64::INFINITY } else { 10.0 * (signal / error).log10() }
}

/// `max |actual − reference|`.
pub fn max_abs(actual: &[f32], reference: &[f32]) -> f64 {
    pairs(actual, reference)
        .map(|(actual, reference)| (actual - reference).abs())
        .fold(0.0, |max, error| if error > max || error.is_nan() { error } else { max })
}

/// `⟨actual, reference⟩ / (‖actual‖·‖reference‖)`; NaN when one of them is zero.
pub fn cosine(actual: &[f32], reference: &[f32]) -> f64 {
    let (mut dot, mut actual_energy, mut reference_energy) = (0.0, 0.0, 0.0);
    for (actual, reference) in pairs(actual, reference) {
        dot += actual * reference;
        actual_energy += actual * actual;
        reference_energy += reference * reference;
    }
    dot / (actual_energy.sqrt() * reference_energy.sqrt())
}

fn energies(actual: &[f32], reference: &[f32]) -> (f64, f64) {
    pairs(actual, reference).fold((0.0, 0.0), |(error, signal), (actual, reference)| {
        (error + (actual - reference).powi(2), signal + reference * reference)
    })
}

fn pairs(actual: &[f32], reference: &[f32]) -> impl Iterator<Item = (f64, f64)> {
    assert_eq!(actual.len(), reference.len(), "metrics compare slices of one length");
    actual.iter().zip(reference).map(|(actual, reference)| (f64::from(*actual), f64::from(*reference)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let (actual, reference) = ([3.0, 4.5], [3.0, 4.0]);
        assert_eq!(relative_l2(&actual, &reference), 0.1);
        assert_eq!(max_abs(&actual, &reference), 0.5);
        assert!((sqnr_db(&actual, &reference) - 20.0).abs() < 1e-12);
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5_f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn edges() {
        assert_eq!(relative_l2(&[], &[]), 0.0);
        assert_eq!(relative_l2(&[1.0], &[0.0]), f64::INFINITY);
        assert_eq!(sqnr_db(&[1.0], &[1.0]), f64::INFINITY);
        assert!(max_abs(&[f32::NAN, 1.0], &[0.0, 0.0]).is_nan());
        assert!(relative_l2(&[f32::NAN], &[1.0]).is_nan());
    }
}
