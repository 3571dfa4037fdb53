//! What the supervisor's socket is asked, and answers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::process::Signal;

use super::child::Child;
use super::state::{Keeper, Phase, Waits};
use crate::handoff::{Answer, Ask, SupervisorStatus};

impl Keeper {
    /// Reads what a connection sent, and answers. `false`: it is over.
    pub(super) fn talk(&mut self, index: usize) -> bool {
        let open = match self.connections[index].line.receive() {
            Ok(open) => open,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(_) => false,
        };
        while let Some((text, descriptor)) = self.connections[index].line.take() {
            let answer = match serde_json::from_slice(&text) {
                Ok(ask) => self.answer(index, ask, descriptor),
                Err(error) => Some(Answer::Failed {
                    reason: format!("not a question of this version: {error}"),
                }),
            };
            if let Some(answer) = answer
                && !self.send(index, &answer)
            {
                return false;
            }
        }
        open
    }

    fn send(&mut self, index: usize, answer: &Answer) -> bool {
        self.connections[index].line.send(answer, None).is_ok()
    }

    fn answer(&mut self, index: usize, ask: Ask, descriptor: Option<OwnedFd>) -> Option<Answer> {
        Some(match ask {
            Ask::Deposit { name } => match descriptor {
                Some(descriptor) => {
                    self.descriptors.insert(name, descriptor);
                    Answer::Done
                }
                None => Answer::Failed {
                    reason: format!("no descriptor came with `{name}`"),
                },
            },
            Ask::Fetch { name } => {
                let Some(descriptor) = self.descriptors.get(&name) else {
                    return Some(Answer::Missing);
                };
                // On failure the connection is of no more use, and its end is noticed when it is read.
                let line = &mut self.connections[index].line;
                drop(line.send(&Answer::Descriptor, Some(descriptor.as_fd())));
                return None;
            }
            Ask::Names => Answer::Names {
                names: self.descriptors.keys().cloned().collect(),
            },
            Ask::Remove { name } => {
                self.descriptors.remove(&name);
                Answer::Done
            }
            Ask::Ready { pid } => {
                self.ready(pid);
                Answer::Done
            }
            Ask::RestartProxy => {
                if !matches!(self.phase, Phase::Running) {
                    return Some(Answer::Failed {
                        reason: "the supervisor is ending".to_owned(),
                    });
                }
                if self.successor.is_none() {
                    match self.start_proxy() {
                        Ok(child) => self.successor = Some(child),
                        Err(error) => {
                            return Some(Answer::Failed {
                                reason: format!("can't start the proxy: {error}"),
                            });
                        }
                    }
                }
                self.connections[index].waits = Some(Waits::Restart);
                return None;
            }
            Ask::Shutdown => {
                self.connections[index].waits = Some(Waits::Shutdown);
                self.begin_end(Instant::now());
                return None;
            }
            Ask::Status => Answer::Status {
                status: self.status(),
            },
        })
    }

    fn ready(&mut self, pid: u32) {
        let is = |child: &Option<Child>| {
            child
                .as_ref()
                .is_some_and(|child| u32::try_from(child.pid()) == Ok(pid))
        };
        if is(&self.successor) {
            if let Some(before) = self.proxy.take() {
                before.signal(Signal::TERM);
                self.retiring.push(before);
            }
            self.proxy = self.successor.take();
            if let Some(proxy) = &mut self.proxy {
                proxy.is_ready = true;
            }
            self.answer_waiting(Waits::Restart, &Answer::Done);
        } else if is(&self.proxy) {
            if let Some(proxy) = &mut self.proxy {
                proxy.is_ready = true;
            }
            self.adopting_until = None;
            // One that was retiring when its successor was killed, or that nobody noted: only one stays.
            for other in &self.retiring {
                other.signal(Signal::TERM);
            }
        }
    }

    pub(super) fn answer_waiting(&mut self, waits: Waits, answer: &Answer) {
        for index in 0..self.connections.len() {
            if self.connections[index].waits == Some(waits) {
                self.connections[index].waits = None;
                self.send(index, answer);
            }
        }
    }

    fn status(&self) -> SupervisorStatus {
        let pid = |child: &Child| u32::try_from(child.pid()).unwrap_or_default();
        SupervisorStatus {
            pid: std::process::id(),
            controller: self.controller.as_ref().map(pid),
            proxy: self.proxy.as_ref().map(pid),
            retiring: self.retiring.iter().map(pid).collect(),
            controller_restarts: self.controller_restart.count,
            proxy_restarts: self.proxy_restart.count,
            descriptors: self.descriptors.keys().cloned().collect(),
        }
    }
}
