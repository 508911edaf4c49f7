//! Processes as threads, connected over the loopback.

use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::backend::KvType;
use crate::session::SessionOptions;

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

fn options(process: usize, processes: usize, address: &str) -> GroupOptions {
    GroupOptions { process, processes, address: address.to_owned(), timeout: Duration::from_secs(20) }
}

/// What each of these processes does with its group.
fn together<T: Send>(processes: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let address = free_address();
    thread::scope(|scope| {
        let start = |process| {
            let (address, work) = (&address, &work);
            scope.spawn(move || work(Group::connect(&options(process, processes, address)).expect("a group")))
        };
        // The first one comes last.
        let threads: Vec<_> = (0..processes).rev().map(start).collect();
        let mut results: Vec<T> =
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        results.reverse();
        results
    })
}

#[test]
fn every_process_gathers_the_messages_of_all() {
    // More than connections hold, so that all have to send and receive at the same time.
    for bytes in [0, 1, SMALL, SMALL + 1, 40 << 20] {
        let gathered = together(3, |group| {
            let own = vec![u8::try_from(group.process()).expect("small"); bytes + group.process()];
            group.gather(&own).expect("messages")
        });
        for messages in gathered {
            assert_eq!(messages.len(), 3);
            for (process, message) in messages.iter().enumerate() {
                assert_eq!(message.len(), bytes + process);
                assert!(message.iter().all(|byte| usize::from(*byte) == process));
            }
        }
    }
}

#[test]
fn processes_that_were_given_different_things_say_so() {
    let outcomes = together(2, |group| {
        group.agree("version", "1").expect("the same");
        group.agree("model", if group.process() == 0 { "opt" } else { "llama" })
    });
    for outcome in outcomes {
        let error = outcome.expect_err("different").to_string();
        assert!(error.contains("another model") && error.contains("same command"), "{error}");
    }
}

#[test]
fn a_process_that_ends_is_an_error_of_the_others() {
    let outcomes = together(3, |group| {
        if group.process() == 1 {
            return String::new();
        }
        let begin = Instant::now();
        let error = group.gather(b"anyone?").expect_err("process 1 has ended").to_string();
        assert!(begin.elapsed() < Duration::from_secs(10), "{error}");
        error
    });
    assert!(outcomes[2].contains("process 1 of 3 has ended"), "{outcomes:?}");
    assert!(outcomes[0].contains("has ended"), "{outcomes:?}");
}

#[test]
fn an_idle_process_sees_another_one_end() {
    for orderly in [false, true] {
        let outcomes = together(2, |group| {
            let mut watches = group.watch().expect("watches");
            let watch = watches.pop().expect("one");
            // Both watch before one of them ends.
            group.gather(&[]).expect("both are there");
            match (group.process(), orderly) {
                (0, true) => {
                    drop(group);
                    watch.wait().is_none()
                }
                (0, false) => {
                    watch.wait().is_some_and(|error| error.to_string() == "process 1 of 2 has ended")
                }
                (_, true) => {
                    assert_eq!(Step::decode(&group.next().expect("a step")).expect("a step"), Step::End);
                    true
                }
                (_, false) => true,
            }
        });
        assert_eq!(outcomes, [true, true], "{orderly}");
    }
}

#[test]
fn a_process_that_does_not_come_is_named() {
    let address = free_address();
    let timeout = Duration::from_millis(300);
    for (process, word) in [(0, "process 1 of 2 did not come"), (1, "process 0 does not answer")] {
        let options = GroupOptions { timeout, ..options(process, 2, &address) };
        let error = Group::connect(&options).expect_err("alone").to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// Callers that are none of the group change nothing; a process of another group is an error.
#[test]
fn strangers_are_sent_away() {
    let address = free_address();
    thread::scope(|scope| {
        let first = scope.spawn(|| Group::connect(&options(0, 2, &address)));
        let mut stranger = loop {
            if let Ok(stream) = TcpStream::connect(&address) {
                break stream;
            }
        };
        stranger.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        let second = Group::connect(&options(1, 2, &address)).expect("a group");
        let first = first.join().expect("no panic").expect("a group");
        assert_eq!((first.processes(), second.process()), (2, 1));
    });
    let outcomes = thread::scope(|scope| {
        let short = |process, processes| GroupOptions {
            timeout: Duration::from_secs(1),
            ..options(process, processes, &address)
        };
        let first = scope.spawn(move || Group::connect(&short(0, 2)));
        let other = scope.spawn(move || Group::connect(&short(1, 3)));
        [first, other].map(|thread| thread.join().expect("no panic").expect_err("refused").to_string())
    });
    assert!(outcomes[0].contains("another group"), "{outcomes:?}");
}

#[test]
fn steps_are_understood() {
    let options = SessionOptions {
        kv_cache: KvType::Int8,
        total_positions: Some(0),
        sequences: 3,
        ..SessionOptions::text(17)
    };
    let steps = [
        Step::Open { session: 4, options },
        Step::Open { session: 5, options: SessionOptions { total_positions: None, ..options } },
        Step::Close { session: 4 },
        Step::Clear { session: 1, sequence: 2 },
        Step::Expect { session: 1, sequence: 2, tokens: 900 },
        Step::Fork { session: 0, from: 1, to: 2, tokens: 3 },
        Step::Forward {
            session: 0,
            batch: vec![(1, vec![5, 6].into()), (0, vec![].into()), (7, vec![u32::MAX].into())],
        },
        Step::Logits { session: 0, rows: vec![0, 4] },
        Step::End,
    ];
    for step in steps {
        let message = step.encode();
        assert_eq!(Step::decode(&message).expect("a step"), step);
        // No part of a step is another one with the same meaning, and none makes the decoder panic.
        for length in 0..message.len() {
            if let Ok(other) = Step::decode(&message[..length]) {
                assert_ne!(other, step);
            }
        }
    }
    for wrong in [vec![], vec![9; 8], [5_u64, 0, 1, u64::MAX].map(u64::to_le_bytes).concat()] {
        assert!(Step::decode(&wrong).is_err(), "{wrong:?}");
    }
}
