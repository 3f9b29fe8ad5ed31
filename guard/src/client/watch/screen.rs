//! The terminal: taken, drawn on, and given back whatever happens.

use std::path::Path;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::follow::News;
use super::view::View;
use super::{Signals, WatchError, draw, system};

/// Between two pictures, while there is something new.
const PICTURE: Duration = Duration::from_millis(40);

/// The terminal, given back when this is dropped; a panic gives it back before it is told.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Self, WatchError> {
        let opened = ratatui::try_init();
        opened.map(Self).map_err(|error| {
            // It may have been taken by half.
            ratatui::restore();
            system("use the terminal")(error)
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What somebody wants.
enum Wish {
    Quit,
    Next,
    Previous,
    Look,
    Redraw,
}

/// A table of the services, until somebody asks for an end.
pub(super) async fn table(
    socket: &Path,
    first: News,
    mut news: mpsc::Receiver<News>,
    looks: mpsc::Sender<String>,
    signals: &mut Signals,
    colour: bool,
) -> Result<(), WatchError> {
    let place = socket.display().to_string();
    let mut view = View::default();
    view.take(first);
    let mut screen = Screen::open()?;
    let mut wishes = wishes().map_err(system("read the keyboard"))?;
    let mut picture = tokio::time::interval(PICTURE);
    picture.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut outdated = true;
    loop {
        tokio::select! {
            biased;
            () = signals.next() => return Ok(()),
            wish = wishes.recv() => match wish {
                // Without a keyboard nobody could end it.
                None | Some(Wish::Quit) => return Ok(()),
                Some(Wish::Next) => view.choose(true),
                Some(Wish::Previous) => view.choose(false),
                Some(Wish::Look) => {
                    if let Some((_, name, _)) = view.selected() {
                        // One that is under way will do.
                        let _asked = looks.try_send(name.to_owned());
                    }
                }
                Some(Wish::Redraw) => {}
            },
            _ = picture.tick(), if outdated => {
                let drawn = screen.0.draw(|frame| draw::draw(frame, &view, &place, colour));
                drawn.map_err(system("draw on the terminal"))?;
                outdated = false;
                continue;
            }
            told = news.recv() => match told {
                Some(told) => view.take(told),
                None => return Ok(()),
            },
        }
        outdated = true;
    }
}

/// Reads keys on a thread of its own, which ends with the process.
fn wishes() -> std::io::Result<mpsc::Receiver<Wish>> {
    let (wishes, inbox) = mpsc::channel(16);
    let read = move || {
        while let Ok(event) = event::read() {
            if let Some(wish) = wish(&event)
                && wishes.blocking_send(wish).is_err()
            {
                return;
            }
        }
    };
    std::thread::Builder::new().name("keys".to_owned()).spawn(read)?;
    Ok(inbox)
}

fn wish(event: &Event) -> Option<Wish> {
    let Event::Key(key) = event else {
        return matches!(event, Event::Resize(..)).then_some(Wish::Redraw);
    };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Wish::Quit),
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Wish::Quit),
        KeyCode::Char('j') | KeyCode::Down => Some(Wish::Next),
        KeyCode::Char('k') | KeyCode::Up => Some(Wish::Previous),
        KeyCode::Char('r') => Some(Wish::Look),
        _ => None,
    }
}
