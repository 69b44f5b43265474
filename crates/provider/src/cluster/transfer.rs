//! How much of a guest's memory has gone over in a migration: the instance does not say, the metrics of the
//! virt-handler do that it leaves.

use super::Provider;
use crate::view::migration::{Migration, Transfer};
use crate::{Error, Kind};

/// Asks about one migration, again and again. Where the caller may not, or there is nobody to ask, it asks once.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// The node, and where its metrics are.
    at: Option<(String, Vec<String>)>,
    /// Why nobody is asked any more.
    unknown: Option<String>,
}

impl Meter {
    /// Adds how far a migration is, while memory goes over, or why that cannot be said.
    pub(super) async fn read(&mut self, provider: &Provider, migration: &mut Migration) {
        let Some(source) = migration.source.clone().filter(|_| migration.phase == "Running") else { return };
        if self.unknown.is_none() {
            match self.ask(provider, &source, migration).await {
                Ok(transfer) => migration.transfer = transfer,
                Err(error) if matches!(error.kind, Kind::Forbidden | Kind::MissingCapability) => {
                    self.unknown = Some(error.to_string());
                }
                // the pod may be in the middle of an update: the next look tells
                Err(error) => migration.transfer_unknown = Some(error.to_string()),
            }
        }
        if let Some(why) = &self.unknown {
            migration.transfer_unknown = Some(why.clone());
        }
    }

    async fn ask(
        &mut self,
        provider: &Provider,
        node: &str,
        migration: &Migration,
    ) -> Result<Option<Transfer>, Error> {
        let doing = format!("reading how far migration `{}/{}` is", migration.namespace, migration.name);
        let pages = match self.at.take() {
            Some((at, pages)) if at == node => pages,
            _ => provider.virt_handlers(node, &doing).await?,
        };
        let samples = provider.look(&pages, &doing).await?;
        self.at = Some((node.to_owned(), pages));
        Ok(Transfer::of(&samples, &migration.namespace, &migration.vm))
    }
}
