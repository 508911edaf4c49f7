//! Functions with few numbers of their own: the gate of attention's output, and an activation whose numbers are learned.

/// The heads' output is multiplied by `f(gate(x))`, x being the input of the block's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionGate {
    /// f
    pub function: GateFunction,
    /// One number for each head instead of one for each of its dimensions.
    pub by_head: bool,
}

/// The function of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateFunction {
    /// `σ(x) = 1/(1 + e⁻ˣ)`
    Sigmoid,
    /// `ln(1 + eˣ)`
    Softplus,
}

impl GateFunction {
    /// At `x`.
    pub fn at(self, x: f32) -> f32 {
        match self {
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Softplus => softplus(x),
        }
    }
}

/// `ln(1 + eˣ)`, without overflow.
pub(crate) fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// xIELU (Huang and Schlag, 2024): `α₊x² + βx` for positive x, else `α₋(e^min(x, ε) − 1 − x) + βx`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xielu {
    /// α₊
    pub positive: f32,
    /// α₋
    pub negative: f32,
    /// β
    pub slope: f32,
    /// ε
    pub limit: f32,
}

impl Xielu {
    /// At `x`.
    pub fn at(self, x: f32) -> f32 {
        let curve = if x > 0.0 {
            self.positive * x * x
        } else {
            // The minimum with a NaN must not be the limit.
            let inner = if x > self.limit { self.limit } else { x };
            (inner.exp_m1() - x) * self.negative
        };
        curve + self.slope * x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_what_they_say() {
        for x in [-100.0, -3.0, -0.5, 0.0, 0.25, 2.0, 100.0_f32] {
            let exact = f64::from(x);
            let softplus = if x > 50.0 { exact } else { exact.exp().ln_1p() };
            assert!(
                (f64::from(GateFunction::Softplus.at(x)) - softplus).abs() <= 1e-6 * softplus.max(1e-30),
                "{x}"
            );
            let sigmoid = 1.0 / (1.0 + (-exact).exp());
            assert!((f64::from(GateFunction::Sigmoid.at(x)) - sigmoid).abs() <= 1e-6, "{x}");
        }
        assert!(GateFunction::Softplus.at(f32::NAN).is_nan());
    }

    #[test]
    fn the_learned_activation_has_two_branches() {
        let xielu = Xielu { positive: 0.8, negative: 0.7, slope: 0.5, limit: -1e-6 };
        assert!((xielu.at(2.0) - (0.8 * 4.0 + 1.0)).abs() < 1e-6);
        let expected = 0.7 * ((-2.0_f32).exp() - 1.0 + 2.0) - 1.0;
        assert!((xielu.at(-2.0) - expected).abs() < 1e-6);
        assert!((xielu.at(0.0) + 0.7e-6).abs() < 1e-9);
        assert!(xielu.at(f32::NAN).is_nan());
    }
}
