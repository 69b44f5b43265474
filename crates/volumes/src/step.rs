//! One step of a change, for callers that come again until it is done, such as a REST service. Between two calls nothing
//! remembers the change but the VM and the locks of its claims, which are kept from the write until the guest has the volumes.

use hotplug::plan::{Hold, Step, Wish, next};
use hotplug::settle::Wait;

use crate::apply::claim_words;
use crate::locks::Locks;
use crate::{Change, Error, Machine};

/// How far a change is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stand {
    /// All is as wished.
    Done,
    /// This was written, or would be.
    Written {
        /// Volumes that are being attached.
        adds: Vec<String>,
        /// Volumes that are being detached.
        removes: Vec<String>,
    },
    /// This goes first, or is waited for, in words.
    Waiting(Vec<String>),
}

impl Machine {
    /// Takes the next step of a change when nothing else goes first. Detaching goes before attaching; there is no deadline, so
    /// nothing is taken back. `holder` tells the locks of this change from those of others, and is the same in every call.
    ///
    /// # Errors
    /// [`Error`] says what was being done and what is wrong; nothing was written then.
    pub async fn step(&self, change: &Change, holder: &str, dry_run: bool) -> Result<Stand, Error> {
        let way = self.way().await?;
        let wish = Wish { add: change.add.clone(), remove: change.remove.clone(), since: 0, limit: i64::MAX };
        let snapshot = self.observe(&wish.add).await?;
        let step = next(&wish, &snapshot.seen(), 0)
            .map_err(|source| Error::Plan { machine: self.label(), source })?;
        let all: Vec<String> = wish.add.iter().map(|one| one.name.clone()).collect();
        let claims = snapshot.exclusive(&wish.add, &all);
        match step {
            Step::Done => {
                if !dry_run {
                    Locks::of(&claims).release(self, holder).await;
                }
                Ok(Stand::Done)
            }
            Step::Patch { adds, removes, .. } if dry_run => Ok(Stand::Written { adds, removes }),
            Step::Patch { patch, adds, removes } => {
                let mut locks = Locks::default();
                let wanted = snapshot.exclusive(&wish.add, &adds);
                if let Some(taken) = locks.take(self, holder, &wanted).await? {
                    return Ok(Stand::Waiting(vec![taken.words()]));
                }
                if !self.write(way, &wish, &patch, &adds, &removes).await? {
                    locks.release(self, holder).await;
                    return Ok(Stand::Waiting(vec!["somebody else changed the VM meanwhile".into()]));
                }
                Ok(Stand::Written { adds, removes })
            }
            Step::Hold(holds) => Ok(Stand::Waiting(holds.iter().map(Hold::words).collect())),
            Step::Wait(waits) | Step::GiveUp(waits) => {
                if !dry_run {
                    Locks::of(&claims).renew_own(self, holder).await?;
                }
                Ok(Stand::Waiting(waits.iter().map(Wait::words).collect()))
            }
            Step::Claims(trouble) => Ok(Stand::Waiting(trouble.iter().map(claim_words).collect())),
            Step::RollBack { volumes, .. } => Ok(Stand::Waiting(volumes)),
        }
    }
}
