//! What there is of a terminal: its size, and keys as they are pressed.

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{IsTerminal, Read};
use tokio::sync::mpsc;

/// Columns and rows of the terminal that stdout is; nothing where it is none.
pub fn size() -> Option<(usize, usize)> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = tcgetwinsize(&stdout).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// Keys as they are pressed, without being shown; until it is dropped.
#[derive(Debug)]
pub struct Keys {
    before: Option<Termios>,
    pressed: mpsc::Receiver<u8>,
}

impl Keys {
    /// Takes the terminal that stdin is; where it is none no key is ever pressed.
    pub fn take() -> Self {
        let (sender, pressed) = mpsc::channel(16);
        let stdin = std::io::stdin();
        let before = if stdin.is_terminal() { tcgetattr(&stdin).ok() } else { None };
        if let Some(before) = &before {
            let mut modes = before.clone();
            modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            // Without it a key is seen only after the enter key, which is no harm.
            let _as_it_was = tcsetattr(&stdin, OptionalActions::Now, &modes).is_err();
            // Ends with the process: a read of a terminal can't be called off.
            std::thread::spawn(move || {
                let mut key = [0];
                while std::io::stdin().read(&mut key).is_ok_and(|count| count == 1) {
                    if sender.blocking_send(key[0]).is_err() {
                        return;
                    }
                }
            });
        }
        Self { before, pressed }
    }

    /// Waits until this key is pressed. Cancel-safe.
    pub async fn wait_for(&mut self, wanted: u8) {
        loop {
            match self.pressed.recv().await {
                Some(key) if key == wanted => return,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _gone = tcsetattr(std::io::stdin(), OptionalActions::Now, before).is_err();
        }
    }
}
