//! The images of a server, as they are now: looked at again whenever the store has changed.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::{Image, Store, StoreError};
use crate::task::{ImageName, Offer};

/// File times are this coarse at most: a change so soon after the last look may not show.
const COARSE: Duration = Duration::from_secs(1);

pub struct Catalog {
    store: Store,
    seen: Mutex<Option<Seen>>,
}

struct Seen {
    changed: Option<SystemTime>,
    looked: SystemTime,
    images: Arc<Vec<Image>>,
}

impl Catalog {
    pub fn new(store: Store) -> Self {
        Self { store, seen: Mutex::new(None) }
    }

    /// The embedded image and those of the store, by name.
    ///
    /// # Errors
    /// When the store cannot be read; what was seen before is not used then.
    pub fn images(&self) -> Result<Arc<Vec<Image>>, StoreError> {
        let changed = std::fs::metadata(self.store.names()).and_then(|meta| meta.modified()).ok();
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(seen) = seen.as_ref().filter(|seen| seen.is_good(changed)) {
            return Ok(seen.images.clone());
        }
        let looked = SystemTime::now();
        let mut images = self.store.images()?;
        images.push(Image::host());
        images.sort_by(|one, other| one.name.cmp(&other.name));
        let images = Arc::new(images);
        *seen = Some(Seen { changed, looked, images: images.clone() });
        Ok(images)
    }

    /// What tasks may choose from.
    ///
    /// # Errors
    /// [`Catalog::images`]'s.
    pub fn offers(&self) -> Result<Vec<Offer>, StoreError> {
        Ok(self.images()?.iter().map(Image::offer).collect())
    }

    /// # Errors
    /// `NoImage`, and [`Catalog::images`]'s.
    pub fn image(&self, name: &ImageName) -> Result<Image, StoreError> {
        let images = self.images()?;
        images.iter().find(|image| image.name == *name).cloned().ok_or_else(|| StoreError::NoImage(name.clone()))
    }
}

impl Seen {
    fn is_good(&self, changed: Option<SystemTime>) -> bool {
        let settled = changed.is_none_or(|changed| self.looked.duration_since(changed).is_ok_and(|age| age > COARSE));
        self.changed == changed && settled
    }
}
