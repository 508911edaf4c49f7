//! Convolution and recurrences against their formulas in f64, in pieces and beside other sequences.

use std::sync::Arc;

use int8_core::corpus::Random;
use ndarray::{Array2, ArrayView2, s};

use super::{States, convolve, recur};
use crate::backend::cpu::{CpuActivations, Kernel, Rows};
use crate::backend::{Convolution, HeadScan, Operand, Recurrence, RecurrentLayer, SelectiveScan};
use crate::config::Activation;

fn kernel() -> Kernel {
    Kernel::select().expect("a kernel")
}

pub(super) fn random(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    let mut random = Random::new(seed);
    Array2::from_shape_fn((rows, columns), |_| random.normal())
}

fn activations(x: &Array2<f32>) -> CpuActivations {
    let (rows, width) = x.dim();
    CpuActivations { data: x.iter().copied().collect(), rows, max_rows: rows, width }
}

/// Segments of `(sequence, position, rows)` one after the other.
fn segments(of: &[(usize, usize, usize)]) -> Vec<Rows> {
    let mut first_row = 0;
    let rows = of.iter().map(|&(sequence, position, rows)| {
        let segment = Rows { sequence, first_row, rows, position, length: position + rows };
        first_row += rows;
        segment
    });
    rows.collect()
}

pub(super) fn states(layer: &RecurrentLayer) -> States {
    States::new([None, Some(Arc::new(layer.clone()))].into_iter(), 3)
}

pub(super) fn operand(input: usize, columns: std::ops::Range<usize>) -> Operand {
    Operand { input, columns }
}

pub(super) fn wide(x: f32) -> f64 {
    f64::from(x)
}

fn softplus(x: f64) -> f64 {
    x.exp().ln_1p()
}

/// The largest difference must be below `bound` times the largest value.
pub(super) fn assert_close(found: ArrayView2<'_, f32>, expected: &Array2<f64>, bound: f64) {
    assert_eq!(found.dim(), expected.dim());
    let most = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    for (at, expected) in expected.indexed_iter() {
        let found = wide(found[at]);
        assert!((found - expected).abs() <= bound * most, "{at:?}: {found} for {expected}");
    }
}

const KERNEL: usize = 4;

/// A convolution of columns 2 to 9 of 12.
fn convolution() -> Convolution {
    let bias = Some(random(1, 7, 2).into_raw_vec_and_offset().0);
    let weight = random(7, KERNEL, 1);
    Convolution { columns: 2..9, weight, bias, activation: Some(Activation::Silu) }
}

/// Two groups of B and C, five channels a group: no multiple of a vector.
fn selective() -> SelectiveScan {
    let (channels, dimensions) = (70, 5);
    SelectiveScan {
        x: operand(0, 1..71),
        steps: operand(1, 0..70),
        b: operand(2, 3..13),
        c: operand(2, 13..23),
        transition: random(channels, dimensions, 3).mapv(|a| -a.abs()),
        skip: random(1, channels, 4).into_raw_vec_and_offset().0,
        step_bias: Some(random(1, channels, 5).into_raw_vec_and_offset().0),
    }
}

fn selective_inputs(rows: usize) -> [Array2<f32>; 3] {
    [random(rows, 75, 6), random(rows, 70, 7), random(rows, 23, 8)]
}

fn heads() -> HeadScan {
    let vector = |seed| random(1, 6, seed).into_raw_vec_and_offset().0;
    HeadScan {
        heads: 6,
        head_size: 3,
        state: 11,
        x: operand(0, 0..18),
        steps: operand(0, 18..24),
        b: operand(0, 24..46),
        c: operand(0, 46..68),
        transition: vector(9).iter().map(|a| -a.abs()).collect(),
        skip: vector(10),
        step_bias: vector(11),
        step_limits: [0.4, 1.5],
    }
}

/// `recur` over segments, in one forward.
pub(super) fn run(states: &mut States, of: &[(usize, usize, usize)], inputs: &[Array2<f32>]) -> Array2<f32> {
    let inputs: Vec<CpuActivations> = inputs.iter().map(activations).collect();
    let rows = inputs[0].rows;
    let outputs = states.layer(1).expect("a layer").recurrence.as_ref().expect("a recurrence").outputs();
    let mut out = CpuActivations { data: Vec::new(), rows: 0, max_rows: rows, width: outputs };
    let inputs: Vec<&CpuActivations> = inputs.iter().collect();
    recur(kernel(), &segments(of), states, 1, &inputs, &mut out).expect("a recurrence");
    out.view().to_owned()
}

pub(super) fn rows_of(inputs: &[Array2<f32>], rows: std::ops::Range<usize>) -> Vec<Array2<f32>> {
    inputs.iter().map(|input| input.slice(s![rows.clone(), ..]).to_owned()).collect()
}

#[test]
fn a_convolution_sees_the_tokens_before_it() {
    let spec = convolution();
    let layer = RecurrentLayer { convolution: Some(spec.clone()), recurrence: None };
    let x = random(9, 12, 20);
    let mut expected = x.mapv(wide);
    for row in 0..9 {
        for channel in 0..7 {
            let mut sum = wide(spec.bias.as_ref().expect("a bias")[channel]);
            for tap in (0..KERNEL).filter(|tap| row + tap + 1 >= KERNEL) {
                let input = x[[row + tap + 1 - KERNEL, 2 + channel]];
                sum += wide(spec.weight[[channel, tap]]) * wide(input);
            }
            expected[[row, 2 + channel]] = sum / (1.0 + (-sum).exp());
        }
    }
    let mut states_of_all = states(&layer);
    let mut whole = x.clone();
    convolve(kernel(), &segments(&[(0, 0, 9)]), &mut states_of_all, 1, whole.view_mut()).expect("convolved");
    assert_close(whole.view(), &expected, 1e-6);
    // In pieces of one, two, and more tokens than the window has, beside another sequence: the same bits.
    let mut states_of_parts = states(&layer);
    let other = random(3, 12, 21);
    let mut first = 0;
    for rows in [1, 2, 5, 1] {
        let part = x.slice(s![first..first + rows, ..]);
        let mut both = ndarray::concatenate(ndarray::Axis(0), &[other.view(), part]).expect("equal widths");
        let of = segments(&[(2, 0, 3), (1, first, rows)]);
        convolve(kernel(), &of, &mut states_of_parts, 1, both.view_mut()).expect("convolved");
        assert_eq!(both.slice(s![3.., ..]), whole.slice(s![first..first + rows, ..]));
        first += rows;
    }
}

#[test]
fn a_selective_scan_is_its_formula() {
    let scan = selective();
    let (rows, dimensions) = (8, 5);
    let inputs = selective_inputs(rows);
    let mut expected = Array2::zeros((rows, 70));
    for channel in 0..70 {
        let mut h = vec![0.0; dimensions];
        let group = channel / 35 * dimensions;
        for row in 0..rows {
            let bias = wide(scan.step_bias.as_ref().expect("a bias")[channel]);
            let step = softplus(wide(inputs[1][[row, channel]]) + bias);
            let x = wide(inputs[0][[row, 1 + channel]]);
            let mut y = wide(scan.skip[channel]) * x;
            for (n, h) in h.iter_mut().enumerate() {
                let decay = (step * wide(scan.transition[[channel, n]])).exp();
                *h = decay * *h + step * wide(inputs[2][[row, 3 + group + n]]) * x;
                y += *h * wide(inputs[2][[row, 13 + group + n]]);
            }
            expected[[row, channel]] = y;
        }
    }
    let layer = RecurrentLayer { convolution: None, recurrence: Some(Recurrence::SelectiveScan(scan)) };
    let found = run(&mut states(&layer), &[(0, 0, rows)], &inputs);
    assert_close(found.view(), &expected, 1e-5);
}

#[test]
fn a_head_scan_is_its_formula() {
    let scan = heads();
    let rows = 8;
    let input = random(rows, 68, 12);
    let mut expected = Array2::zeros((rows, 18));
    for head in 0..6 {
        let mut h = Array2::<f64>::zeros((3, 11));
        let group = head / 3 * 11;
        for row in 0..rows {
            let step = softplus(wide(input[[row, 18 + head]]) + wide(scan.step_bias[head]));
            let step = step.clamp(wide(0.4), wide(1.5));
            for p in 0..3 {
                let x = wide(input[[row, 3 * head + p]]);
                let mut y = wide(scan.skip[head]) * x;
                for n in 0..11 {
                    let decay = (step * wide(scan.transition[head])).exp();
                    h[[p, n]] = decay * h[[p, n]] + step * wide(input[[row, 24 + group + n]]) * x;
                    y += h[[p, n]] * wide(input[[row, 46 + group + n]]);
                }
                expected[[row, 3 * head + p]] = y;
            }
        }
    }
    let layer = RecurrentLayer { convolution: None, recurrence: Some(Recurrence::HeadScan(scan)) };
    let found = run(&mut states(&layer), &[(0, 0, rows)], &[input]);
    assert_close(found.view(), &expected, 1e-5);
}

/// In pieces, beside other sequences, after a failed forward and after a fork: the same bits.
#[test]
fn a_state_belongs_to_its_sequence() {
    let selective = (Recurrence::SelectiveScan(selective()), selective_inputs(12).to_vec());
    let heads = (Recurrence::HeadScan(heads()), vec![random(12, 68, 12)]);
    for (recurrence, inputs) in [selective, heads] {
        let layer = RecurrentLayer { convolution: None, recurrence: Some(recurrence) };
        let whole = run(&mut states(&layer), &[(0, 0, 12)], &inputs);
        let mut states = states(&layer);
        // Sequence 0 has the first five tokens, sequence 2 the whole text.
        let both: Vec<Array2<f32>> = inputs
            .iter()
            .map(|input| {
                let parts = [input.slice(s![..5, ..]), input.view()];
                ndarray::concatenate(ndarray::Axis(0), &parts).expect("equal widths")
            })
            .collect();
        let found = run(&mut states, &[(0, 0, 5), (2, 0, 12)], &both);
        assert_eq!(found.slice(s![..5, ..]), whole.slice(s![..5, ..]));
        assert_eq!(found.slice(s![5.., ..]), whole);
        // A forward whose later blocks failed is repeated with other tokens.
        run(&mut states, &[(0, 5, 3)], &rows_of(&inputs, 1..4));
        let found = run(&mut states, &[(0, 5, 6)], &rows_of(&inputs, 5..11));
        assert_eq!(found, whole.slice(s![5..11, ..]));
        // A fork at the end, and at the forward before it.
        states.fork(0, 1, 11).expect("its end");
        let last = rows_of(&inputs, 11..12);
        assert_eq!(run(&mut states, &[(1, 11, 1)], &last), whole.slice(s![11.., ..]));
        states.fork(0, 1, 5).expect("the forward before");
        assert_eq!(run(&mut states, &[(1, 5, 7)], &rows_of(&inputs, 5..12)), whole.slice(s![5.., ..]));
        let error = states.fork(0, 1, 7).expect_err("in the middle").to_string();
        assert!(error.contains("cannot be taken back"), "{error}");
        // Nothing is left of a released sequence.
        let held = states.bytes();
        states.release(0);
        assert!(states.bytes() < held);
        let input = [activations(&last[0])];
        let inputs_of: Vec<&CpuActivations> = input.iter().cycle().take(inputs.len()).collect();
        let mut out = CpuActivations { data: Vec::new(), rows: 0, max_rows: 1, width: whole.ncols() };
        let error = recur(kernel(), &segments(&[(0, 11, 1)]), &mut states, 1, &inputs_of, &mut out);
        assert!(error.expect_err("no state").to_string().contains("clear the sequence"));
        assert_eq!(run(&mut states, &[(0, 0, 4)], &rows_of(&inputs, 0..4)), whole.slice(s![..4, ..]));
    }
}

#[test]
fn a_layer_without_a_state_is_refused() {
    let layer = RecurrentLayer { convolution: None, recurrence: None };
    let mut states = states(&layer);
    let x = activations(&random(1, 12, 1));
    let mut out = CpuActivations { data: Vec::new(), rows: 0, max_rows: 1, width: 1 };
    for layer in [0, 1, 2] {
        assert!(recur(kernel(), &segments(&[(0, 0, 1)]), &mut states, layer, &[&x], &mut out).is_err());
        let mut x = random(1, 12, 1);
        assert!(convolve(kernel(), &segments(&[(0, 0, 1)]), &mut states, layer, x.view_mut()).is_err());
    }
}
