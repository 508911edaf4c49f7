//! `int8 run --chat`: questions and answers in the chat template of the model.

use std::io::{self, IsTerminal, Read};

use int8_nn::backend::Backend;
use int8_nn::{ChatTemplate, Message};
use serde_json::json;

use super::generate::{Echo, Run};
use crate::args::InputArgs;
use crate::failure::Failure;
use crate::output::Output;

/// Where questions come from.
pub(super) enum Input {
    /// One, from the command line or standard input.
    Question(String),
    /// A conversation on the terminal.
    Terminal,
}

impl Input {
    /// Decides before a model is loaded.
    pub(super) fn of(input: &InputArgs, output: &Output) -> Result<Self, Failure> {
        if let Some(prompt) = &input.prompt {
            return Ok(Self::Question(prompt.clone()));
        }
        if io::stdin().is_terminal() {
            return match output.json {
                false => Ok(Self::Terminal),
                true => Err(Failure::usage("--json has no conversation: give the question with --prompt")),
            };
        }
        let mut question = String::new();
        io::stdin().lock().read_to_string(&mut question)?;
        match question.trim() {
            "" => Err(Failure::usage("--chat: no question: give --prompt TEXT, or one on standard input")),
            question => Ok(Self::Question(question.to_owned())),
        }
    }
}

/// Answers.
pub(super) fn run<B: Backend>(run: &Run<'_, B>, input: Input) -> Result<(), Failure> {
    let template = run
        .model
        .chat_template()?
        .with_clock(|format| jiff::fmt::strtime::format(format, &jiff::Zoned::now()).unwrap_or_default());
    let mut chat = Chat { run, template, messages: Vec::new() };
    chat.messages.extend(run.arguments.system.as_ref().map(|system| Message::new("system", system)));
    let question = match input {
        Input::Question(question) => question,
        Input::Terminal => return chat.converse(),
    };
    let answer = chat.answer(question)?;
    let output = run.output;
    if output.json {
        let messages: Vec<_> =
            chat.messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect();
        let more = json!({"prompt": answer.prompt, "text": answer.text, "messages": messages});
        return output.object(&run.report(&answer.ids, &answer.generation, more));
    }
    output.line("")?;
    run.remark(&answer.ids, &answer.generation);
    Ok(())
}

struct Chat<'a, B: Backend> {
    run: &'a Run<'a, B>,
    template: ChatTemplate,
    messages: Vec<Message>,
}

struct Answer {
    prompt: String,
    ids: Vec<u32>,
    generation: int8_nn::Generation,
    text: String,
}

impl<B: Backend> Chat<'_, B> {
    /// Answers one question and appends both to the conversation.
    fn answer(&mut self, question: String) -> Result<Answer, Failure> {
        let tokenizer = self.run.model.tokenizer()?;
        self.messages.push(Message::new("user", question));
        let prompt = self.template.render(&self.messages, true)?;
        // The template writes the special tokens itself.
        let ids = tokenizer.encode(&prompt, false)?;
        let end = self.template.eos_token().and_then(|token| tokenizer.token_id(token));
        let generation =
            self.run.generate(&ids, Some(tokenizer), Echo::Nothing, end.into_iter().collect())?;
        let text = tokenizer.decode(&generation.ids)?;
        self.messages.push(Message::new("assistant", text.trim()));
        Ok(Answer { prompt, ids, generation, text })
    }

    /// Questions from the terminal, until an empty one or the end.
    fn converse(&mut self) -> Result<(), Failure> {
        let output = self.run.output;
        output.remark(&output.dim("An empty line ends the conversation."));
        let mut last = None;
        loop {
            output.text(&output.bold("> "))?;
            let mut question = String::new();
            io::stdin().read_line(&mut question)?;
            if question.trim().is_empty() {
                break;
            }
            last = Some(self.answer(question.trim().to_owned())?);
            output.line("")?;
        }
        output.line("")?;
        if let Some(answer) = last {
            self.run.remark(&answer.ids, &answer.generation);
        }
        Ok(())
    }
}
