//! Recurrences of linear attention and short convolutions against their formulas in f64, and in pieces.

use int8_core::corpus::Random;
use ndarray::{Array2, s};

use super::tests::{assert_close, operand, random, rows_of, run, states, wide};
use crate::backend::{GatedDeltaRule, LightningAttention, Recurrence, RecurrentLayer, ShortConvolution};
use crate::config::Activation;

fn vector(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.normal()).collect()
}

fn layer(recurrence: Recurrence) -> RecurrentLayer {
    RecurrentLayer { convolution: None, recurrence: Some(recurrence) }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

const ROWS: usize = 9;
const HEADS: usize = 4;
const KEY: usize = 5;
const VALUE: usize = 11;

/// Two value heads to a key head; `decays` numbers a head.
fn rule(decays: usize) -> GatedDeltaRule {
    let steps = if decays == 1 { operand(0, 68..72) } else { operand(1, 2..22) };
    GatedDeltaRule {
        heads: HEADS,
        key_heads: 2,
        key_size: KEY,
        value_size: VALUE,
        queries: operand(0, 0..10),
        keys: operand(0, 10..20),
        values: operand(0, 20..64),
        betas: operand(0, 64..68),
        step_bias: vector(steps.columns.len(), 31),
        steps,
        transition: vector(HEADS, 32).iter().map(|a| -a.abs()).collect(),
        beta_scale: 2.0,
    }
}

fn delta_inputs() -> Vec<Array2<f32>> {
    vec![random(ROWS, 72, 33), random(ROWS, 23, 34)]
}

fn delta_formula(rule: &GatedDeltaRule, inputs: &[Array2<f32>]) -> Array2<f64> {
    let decays = rule.step_bias.len() / HEADS;
    let mut expected = Array2::zeros((ROWS, HEADS * VALUE));
    for head in 0..HEADS {
        let mut state = Array2::<f64>::zeros((KEY, VALUE));
        let normalized = |row: usize, first: usize| {
            let x: Vec<f64> = (0..KEY).map(|k| wide(inputs[0][[row, first + head / 2 * KEY + k]])).collect();
            let norm = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
            x.iter().map(|x| x / norm).collect::<Vec<f64>>()
        };
        for row in 0..ROWS {
            let (query, key) = (normalized(row, 0), normalized(row, 10));
            let beta = 2.0 * sigmoid(wide(inputs[0][[row, 64 + head]]));
            for (k, mut of_key) in state.rows_mut().into_iter().enumerate() {
                let index = head * decays + k % decays;
                let step = inputs[rule.steps.input][[row, rule.steps.columns.start + index]];
                let step = (wide(step) + wide(rule.step_bias[index])).exp().ln_1p();
                of_key *= (wide(rule.transition[head]) * step).exp();
            }
            for v in 0..VALUE {
                let known: f64 = (0..KEY).map(|k| state[[k, v]] * key[k]).sum();
                let delta = beta * (wide(inputs[0][[row, 20 + head * VALUE + v]]) - known);
                for (k, key) in key.iter().enumerate() {
                    state[[k, v]] += key * delta;
                }
                let y: f64 = (0..KEY).map(|k| state[[k, v]] * query[k]).sum();
                expected[[row, head * VALUE + v]] = y / (wide(5.0)).sqrt();
            }
        }
    }
    expected
}

#[test]
fn the_gated_delta_rule_is_its_formula() {
    for decays in [1, KEY] {
        let (rule, inputs) = (rule(decays), delta_inputs());
        let expected = delta_formula(&rule, &inputs);
        let layer = layer(Recurrence::GatedDelta(rule));
        let found = run(&mut states(&layer), &[(0, 0, ROWS)], &inputs);
        assert_close(found.view(), &expected, 1e-5);
    }
}

fn lightning() -> LightningAttention {
    LightningAttention {
        head_size: KEY,
        queries: operand(0, 1..16),
        keys: operand(0, 16..31),
        values: operand(0, 31..46),
        activation: Activation::Silu,
        slopes: vec![0.5, 0.25, 0.03],
    }
}

#[test]
fn lightning_attention_is_its_formula() {
    let (spec, input) = (lightning(), random(ROWS, 46, 35));
    let mut expected = Array2::zeros((ROWS, 15));
    let silu = |row: usize, column: usize| {
        let x = wide(input[[row, column]]);
        x * sigmoid(x)
    };
    // As attention whose scores decay with the distance.
    for head in 0..3 {
        for row in 0..ROWS {
            for before in 0..=row {
                let distance = f64::from(u8::try_from(row - before).expect("few rows"));
                let of = |first: usize, k: usize| first + head * KEY + k;
                let score: f64 = (0..KEY).map(|k| silu(row, of(1, k)) * silu(before, of(16, k))).sum();
                let score = score * (-wide(spec.slopes[head]) * distance).exp();
                for v in 0..KEY {
                    expected[[row, head * KEY + v]] += score * silu(before, of(31, v));
                }
            }
        }
    }
    let layer = layer(Recurrence::Lightning(spec));
    let found = run(&mut states(&layer), &[(0, 0, ROWS)], &[input]);
    assert_close(found.view(), &expected, 1e-5);
}

fn short() -> ShortConvolution {
    ShortConvolution {
        before: operand(0, 1..8),
        after: operand(0, 8..15),
        x: operand(0, 15..22),
        weight: random(7, 3, 36),
        bias: Some(vector(7, 37)),
    }
}

#[test]
fn a_short_convolution_is_its_formula() {
    let (spec, input) = (short(), random(ROWS, 22, 38));
    let mut expected = Array2::zeros((ROWS, 7));
    for row in 0..ROWS {
        for channel in 0..7 {
            let mut sum = wide(spec.bias.as_ref().expect("a bias")[channel]);
            for tap in (0..3).filter(|tap| row + tap >= 2) {
                let (gate, x) = (input[[row + tap - 2, 1 + channel]], input[[row + tap - 2, 15 + channel]]);
                sum += wide(spec.weight[[channel, tap]]) * wide(gate) * wide(x);
            }
            expected[[row, channel]] = wide(input[[row, 8 + channel]]) * sum;
        }
    }
    let layer = layer(Recurrence::ShortConvolution(spec));
    let found = run(&mut states(&layer), &[(0, 0, ROWS)], &[input]);
    assert_close(found.view(), &expected, 1e-6);
}

/// In pieces, beside another sequence: the same bits.
#[test]
fn pieces_are_the_whole() {
    let cases = [
        (Recurrence::GatedDelta(rule(1)), delta_inputs()),
        (Recurrence::GatedDelta(rule(KEY)), delta_inputs()),
        (Recurrence::Lightning(lightning()), vec![random(ROWS, 46, 35)]),
        (Recurrence::ShortConvolution(short()), vec![random(ROWS, 22, 38)]),
    ];
    for (recurrence, inputs) in cases {
        let layer = layer(recurrence);
        let whole = run(&mut states(&layer), &[(0, 0, ROWS)], &inputs);
        let mut states = states(&layer);
        let mut first = 0;
        for rows in [1, 4, 1, 3] {
            let parts = rows_of(&inputs, first..first + rows);
            let others = rows_of(&inputs, 0..2);
            let both: Vec<Array2<f32>> = others
                .iter()
                .zip(&parts)
                .map(|(other, part)| {
                    ndarray::concatenate(ndarray::Axis(0), &[other.view(), part.view()])
                        .expect("equal widths")
                })
                .collect();
            let found = run(&mut states, &[(2, 0, 2), (1, first, rows)], &both);
            assert_eq!(found.slice(s![2.., ..]), whole.slice(s![first..first + rows, ..]));
            first += rows;
        }
    }
}
