//! `int8 run --chat`: questions and answers in the chat template of the model; without a prompt, a conversation on the terminal.
//! There a model without a template continues each line.

use std::io::{self, IsTerminal, Read};

use int8_nn::backend::Backend;
use int8_nn::{ChatTemplate, Message, SpecialTokens};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::json;

use super::generate::{Echo, Run};
use crate::args::{InputArgs, RunArgs};
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
    /// Decides before a model is loaded. `None`: this is no chat. `input`: with its text read.
    pub(super) fn of(
        arguments: &RunArgs,
        input: &InputArgs,
        output: &Output,
    ) -> Result<Option<Self>, Failure> {
        let terminal = io::stdin().is_terminal();
        let nothing_given = input.prompt.is_none() && input.ids.is_none() && !output.json;
        if !(arguments.chat || terminal && nothing_given) {
            return Ok(None);
        }
        Self::of_chat(input, output, terminal).map(Some)
    }

    fn of_chat(input: &InputArgs, output: &Output, terminal: bool) -> Result<Self, Failure> {
        if let Some(prompt) = &input.prompt {
            return Ok(Self::Question(prompt.clone()));
        }
        if terminal {
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
    let optional = matches!(input, Input::Terminal) && !run.arguments.chat && run.arguments.system.is_none();
    let template = if optional { run.model.find_chat_template()? } else { Some(run.model.chat_template()?) };
    let clock = |format: &str| jiff::fmt::strtime::format(format, &jiff::Zoned::now()).unwrap_or_default();
    let template = template.map(|template| template.with_clock(clock));
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
    /// `None`: the model continues texts.
    template: Option<ChatTemplate>,
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
        let Some(template) = &self.template else {
            let ids = tokenizer.encode(&question, SpecialTokens::Add)?;
            let generation = self.run.generate(&ids, Some(tokenizer), Echo::Prompt, Vec::new())?;
            let text = tokenizer.decode(&generation.ids)?;
            return Ok(Answer { prompt: question, ids, generation, text });
        };
        self.messages.push(Message::new("user", question));
        let prompt = template.render(&self.messages, true)?;
        // The template writes the special tokens itself.
        let ids = tokenizer.encode(&prompt, SpecialTokens::Omit)?;
        let end = template.eos_token().and_then(|token| tokenizer.token_id(token));
        let generation =
            self.run.generate(&ids, Some(tokenizer), Echo::Nothing, end.into_iter().collect())?;
        let text = tokenizer.decode(&generation.ids)?;
        self.messages.push(Message::new("assistant", text.trim()));
        Ok(Answer { prompt, ids, generation, text })
    }

    /// Questions and commands from the terminal, until `/bye` or the end of input.
    fn converse(&mut self) -> Result<(), Failure> {
        let output = self.run.output;
        self.run.stop.install()?;
        let (begin, help) = match self.template {
            Some(_) => ("/help lists the commands, /bye ends the conversation.", HELP),
            None => (
                "This model has no chat template: it continues each line. /help lists the commands.",
                HELP_TEXT,
            ),
        };
        output.remark(&output.dim(begin));
        let mut editor = DefaultEditor::new().map_err(terminal)?;
        let system = self.messages.clone();
        let mut last = None;
        while let Some(line) = read(&mut editor)? {
            let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
            match command {
                "" => {}
                "/bye" | "/exit" | "/quit" => break,
                "/help" | "/?" => output.remark(help),
                "/clear" => self.messages.clone_from(&system),
                "/system" => {
                    self.messages.clear();
                    self.messages.extend((!rest.is_empty()).then(|| Message::new("system", rest)));
                }
                "/history" => {
                    for message in &self.messages {
                        output.line(&format!(
                            "{} {}",
                            output.bold(&format!("{}:", message.role)),
                            message.content
                        ))?;
                    }
                }
                _ if command.starts_with('/') => {
                    output.remark(&format!("{command} is no command; /help lists them"));
                }
                _ => {
                    let before = self.messages.clone();
                    self.run.stop.begin_answer();
                    let answer = self.answer(line);
                    self.run.stop.end_answer();
                    match answer {
                        Ok(answer) => last = Some(answer),
                        Err(failure) if failure.broken_pipe => return Err(failure),
                        // Too long a question, say: the conversation goes on without it.
                        Err(failure) => {
                            output.remark(&format!("error: {failure}"));
                            self.messages = before;
                        }
                    }
                    output.line("")?;
                }
            }
        }
        output.line("")?;
        if let Some(answer) = last {
            self.run.remark(&answer.ids, &answer.generation);
        }
        Ok(())
    }
}

/// A question or command: a line, with the next one if it ends in `\\`; `None` at the end of input (Ctrl-D) and after Ctrl-C.
fn read(editor: &mut DefaultEditor) -> Result<Option<String>, Failure> {
    let mut text = String::new();
    let mut prompt = "> ";
    loop {
        let line = match editor.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Eof) if !text.is_empty() => String::new(),
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(None),
            Err(error) => return Err(terminal(error)),
        };
        // Without it the line cannot be called back, and that is all.
        let _ = editor.add_history_entry(&line);
        let Some(begin) = line.strip_suffix('\\') else {
            text.push_str(&line);
            return Ok(Some(text.trim().to_owned()));
        };
        text.push_str(begin);
        text.push('\n');
        prompt = ". ";
    }
}

fn terminal(error: ReadlineError) -> Failure {
    match error {
        ReadlineError::Io(error) => error.into(),
        error => Failure::new(format!("the terminal: {error}")),
    }
}

const HELP: &str = "A line is a question; one that ends in \\ goes on in the next. Arrow keys edit it and call former ones back.
  /clear         forget the conversation
  /system TEXT   begin anew with these instructions, or with none
  /history       show the conversation
  /bye           end (or Ctrl-D)
  Ctrl-C         stop the answer; between answers, end";

const HELP_TEXT: &str = "A line is a text to continue; one that ends in \\ goes on in the next.
  /bye           end (or Ctrl-D)
  Ctrl-C         stop the text; between texts, end";
