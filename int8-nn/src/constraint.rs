//! Answers of a given form: which tokens may come next is decided from outside, by a grammar for example.

use std::fmt;

/// Restricts the tokens of one answer: [`restrict`](Self::restrict) is called before each token is chosen and
/// [`advance`](Self::advance) with the choice. An [`Engine`](crate::engine::Engine) calls them on any thread, while other requests
/// wait for their tokens: both should take well under a millisecond.
pub trait TokenConstraint: fmt::Debug + Send + Sync {
    /// Sets the logits `[vocabulary]` of tokens that must not come next to −∞. Tokens that end the text stay only where the answer
    /// may end.
    ///
    /// # Errors
    /// A message for whoever wants the answer, which fails.
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// Takes the next token. Returns whether the answer is complete: it ends the text, or nothing may follow.
    ///
    /// # Errors
    /// As [`restrict`](Self::restrict).
    fn advance(&mut self, token: u32) -> Result<bool, String>;

    /// A copy in the same state.
    fn copy(&self) -> Box<dyn TokenConstraint>;
}

impl Clone for Box<dyn TokenConstraint> {
    fn clone(&self) -> Self {
        self.as_ref().copy()
    }
}
