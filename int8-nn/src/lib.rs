//! Load any 16- or 32-bit Hugging Face checkpoint, convert it to int8 with LLM.int8(), use it at once.
//!
//! ```no_run
//! use int8_nn::{GenerateOptions, Model};
//!
//! let model = Model::load("path/to/checkpoint")?.int8().build()?;
//! println!("{}", model.generate("Once upon a time", &GenerateOptions::default())?);
//! # Ok::<(), int8_nn::Error>(())
//! ```
//!
//! Following one activation from checkpoint to token: [`checkpoint`] opens the files and hands out tensors by name;
//! [`families`] maps a family's `config.json` and tensor names onto one description, [`config`]; [`weights`] finds, stacks
//! and reorders what makes up a linear layer; [`decoder`] is the network, a stack of blocks written once over the operations
//! of a [`backend`]; [`generate`] and [`perplexity`] use it. Residuals are f32 throughout: those of real models overflow f16.

mod attention_spec;
pub mod audio;
pub mod backend;
mod block;
mod calibration;
pub mod chat;
pub mod checkpoint;
mod checks;
pub mod config;
mod constraint;
mod convert;
pub mod decoder;
pub mod embedder;
pub mod encoder;
pub mod engine;
mod error;
mod exact_columns;
pub mod families;
pub mod files;
pub mod generate;
pub mod generation;
pub mod group;
#[cfg(feature = "hub")]
pub mod hub;
mod int8_weight;
#[cfg(any(feature = "cuda", test))]
mod kept_columns;
mod kind;
mod latent;
mod layer_inputs;
pub mod linear8bit;
pub mod model;
mod named;
pub mod outliers;
pub mod perplexity;
pub mod placement;
pub mod plan;
mod position_table;
pub mod precision;
pub mod quality;
pub mod quantize;
mod recurrent;
pub mod sampler;
mod scratch;
mod seq2seq;
pub mod session;
mod shared;
pub mod synthetic;
mod template;
pub mod tokenizer;
mod tokenizer_checks;
pub mod transcriber;
pub mod weights;

pub use chat::{ChatTemplate, Message};
pub use constraint::TokenConstraint;
pub use embedder::Embedder;
pub use error::Error;
pub use families::Kind;
pub use generate::{GenerateOptions, Generation, StopReason};
pub use generation::{GenerationConfig, LogitRules};
pub use linear8bit::Linear8bit;
pub use model::{Loader, Model};
pub use perplexity::{Perplexity, PerplexityOptions};
pub use sampler::{Sampler, Sampling};
pub use session::{Session, SessionOptions};
pub use tokenizer::{SpecialTokens, Tokenizer};
pub use transcriber::Transcriber;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
