//! Attention of a prompt: the kernels of this processor and the types of the KV cache, in turns.
//!
//!     cargo run --release -p int8-cpu --example attention -- [rows] [heads kv_heads size]
//!
//! Defaults: 2048 rows, the 9 heads of 64 over 3 KV heads of SmolLM2-135M. Medians, and how many times as fast as the first line.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::time::{Duration, Instant};

use int8_core::KvType;
use int8_core::corpus::Random;
use int8_cpu::Kernel;
use int8_cpu::attention::{Attention, Bias, KvPages, PAGE_POSITIONS, Query};
use ndarray::Array2;

/// Time that each contestant gets, in turns.
const BUDGET: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let rows = numbers.first().copied().unwrap_or(2048);
    let [heads, kv_heads, size] =
        numbers.get(1..4).and_then(|shape| shape.try_into().ok()).unwrap_or([9, 3, 64]);
    let random = &mut Random::new(1);
    let queries = random.matrix(rows, heads * size, 1.0);
    let [keys, values] = [(); 2].map(|()| random.matrix(rows, kv_heads * size, 1.0));
    let causal: Vec<Query> = (0..rows).map(|position| Query { position, span: 0..position + 1 }).collect();
    let pages = rows.div_ceil(PAGE_POSITIONS);
    let table: Vec<u32> = (0..).take(pages).collect();

    let mut contestants = Vec::new();
    for element in KvType::ALL {
        let mut cache = KvPages::new(element, 1, kv_heads, size, pages)?;
        cache.write(Kernel::best(), 0, &table, 0, keys.view(), values.view())?;
        let cache = std::rc::Rc::new(cache);
        // The portable kernel would take most of the time.
        for kernel in Kernel::available().into_iter().filter(|kernel| kernel.name() != "portable") {
            contestants.push((kernel, element, cache.clone(), Vec::new()));
        }
    }
    let mut out = Array2::zeros(queries.raw_dim());
    let start = Instant::now();
    let enough = BUDGET * u32::try_from(contestants.len())?;
    while start.elapsed() < enough || contestants[0].3.len() < 5 {
        for (kernel, _, cache, times) in &mut contestants {
            let scale = 0.125;
            let attention =
                Attention { kernel: *kernel, heads, scale, softcap: None, bias: Bias::None, sinks: None };
            let start = Instant::now();
            attention.attend(queries.view(), &cache.sequence(0, &table), &causal, out.view_mut())?;
            times.push(start.elapsed());
        }
    }
    println!(
        "{rows} rows, {heads} heads of {size} over {kv_heads}, {} threads",
        rayon::current_num_threads()
    );
    let mut first = None;
    for (kernel, element, _, times) in &mut contestants {
        times.sort_unstable();
        let seconds = times[times.len() / 2].as_secs_f64();
        let first = *first.get_or_insert(seconds);
        println!(
            "{:12} {:4} {:9.3} ms {:6.2}×",
            kernel.name(),
            element.name(),
            1e3 * seconds,
            first / seconds
        );
    }
    Ok(())
}
