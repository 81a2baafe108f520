//! How the child that reads a vendor's library is confined, where nobody can know what such a library needs: it
//! is tried, and whether confinement is to blame is found out by doing without once.
//!
//! Where the configuration insists, confinement stays whatever comes of it. Else a library that tells nothing
//! confined is read once without; where it then tells something, it is tried confined once more, since a driver
//! may merely have come up between the two. Only one that fails again is read without from then on. One that
//! has ever told something confined is confined for good, whatever happens to it later.

use crate::config::Sandbox;
use crate::hardware::Trouble;

/// What is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// Nothing yet.
    Nothing,
    /// It told something confined.
    Works,
    /// It told nothing confined; now it is read without.
    Doubted(Trouble),
    /// It did so without: confined once more.
    Again(Trouble),
    /// Nothing again.
    Lifted(Trouble),
}

/// How a library is read from one child to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confining {
    wanted: Sandbox,
    known: Known,
}

impl Confining {
    pub fn new(wanted: Sandbox) -> Self {
        Self { wanted, known: Known::Nothing }
    }

    /// How the next child is confined.
    pub fn now(&self) -> Sandbox {
        if self.lifted().is_some() { Sandbox::Off } else { self.wanted }
    }

    /// Why the next child is not confined although that was wanted.
    pub fn lifted(&self) -> Option<&Trouble> {
        match &self.known {
            Known::Nothing | Known::Works | Known::Again(_) => None,
            Known::Doubted(why) | Known::Lifted(why) => Some(why),
        }
    }

    /// Whether the next child shall find out something, and end.
    pub fn is_trying(&self) -> bool {
        matches!(self.known, Known::Doubted(_))
    }

    /// A child ended: whether it told of devices, and why nothing more came, where that was no wish.
    pub fn ended(&mut self, told: bool, why: Option<&Trouble>) {
        if self.wanted != Sandbox::Auto {
            return;
        }
        let why = why.filter(|why| may_be_confinement(why)).cloned();
        let known = std::mem::replace(&mut self.known, Known::Nothing);
        self.known = match (known, told, why) {
            (Known::Works, _, _) | (Known::Nothing | Known::Again(_), true, _) => Known::Works,
            (known @ Known::Lifted(_), true, _) => known,
            (Known::Doubted(why), true, _) => Known::Again(why),
            (Known::Nothing, false, Some(why)) => Known::Doubted(why),
            (Known::Again(_), false, Some(why)) => Known::Lifted(why),
            (Known::Nothing | Known::Doubted(_) | Known::Again(_) | Known::Lifted(_), false, _) => {
                Known::Nothing
            }
        };
    }
}

/// Whether a library may get into this trouble by what it may not open or call. One that hangs waits for a
/// card, whatever it may open.
fn may_be_confinement(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::NotLoadable { .. }
        | Trouble::Failed { .. }
        | Trouble::InContainer { .. }
        | Trouble::NoPermission { .. }
        | Trouble::Ended { .. } => true,
        Trouble::NoLibrary { .. }
        | Trouble::NotThere { .. }
        | Trouble::WritableByOthers { .. }
        | Trouble::Owner { .. }
        | Trouble::NoSymbol { .. }
        | Trouble::Implausible { .. }
        | Trouble::Hung { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Trouble {
        Trouble::Failed { call: "init".to_owned(), code: 1 }
    }

    /// How each child was confined, for a library that tells something (`true`) or fails, child by child.
    fn story(wanted: Sandbox, ends: &[bool]) -> Vec<Sandbox> {
        let mut confining = Confining::new(wanted);
        let mut children = Vec::new();
        for told in ends {
            children.push(confining.now());
            confining.ended(*told, (!told).then(failed).as_ref());
        }
        children.push(confining.now());
        children
    }

    #[test]
    fn only_what_fails_confined_works_without_and_fails_again_is_read_without() {
        use Sandbox::{Auto, Off};
        assert_eq!(story(Auto, &[false, true, false, true]), [Auto, Off, Auto, Off, Off]);
        // A driver that came up late.
        assert_eq!(story(Auto, &[false, true, true, false]), [Auto, Off, Auto, Auto, Auto]);
        // It fails either way.
        assert_eq!(story(Auto, &[false, false, false]), [Auto, Off, Auto, Off]);
        // It worked, and crashes later.
        assert_eq!(story(Auto, &[true, false, false]), [Auto; 4]);
        // Without it does not work any more either: confined first.
        assert_eq!(story(Auto, &[false, true, false, false]), [Auto, Off, Auto, Off, Auto]);
    }

    #[test]
    fn who_insists_is_obeyed_and_a_card_that_hangs_lifts_nothing() {
        assert_eq!(story(Sandbox::Required, &[false, false]), [Sandbox::Required; 3]);
        assert_eq!(story(Sandbox::Off, &[false, true]), [Sandbox::Off; 3]);
        let mut confining = Confining::new(Sandbox::Auto);
        for why in [Trouble::Hung { limit_ms: 1 }, Trouble::NotThere { path: "/x".to_owned() }] {
            confining.ended(false, Some(&why));
            assert_eq!(confining.now(), Sandbox::Auto, "{why}");
        }
        confining.ended(false, Some(&failed()));
        assert!(confining.is_trying() && confining.lifted() == Some(&failed()));
    }
}
