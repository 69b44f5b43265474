//! Who a token belongs to, by `TokenReview`, when callers are impersonated instead of passed through.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::identity::User;
use crate::{Error, Provider};

/// How callers are impersonated.
#[derive(Clone, Debug)]
pub struct Impersonation {
    /// The cluster under the service's own identity, which may review tokens and impersonate.
    pub own: Provider,
    /// The audiences that a token must be for; none: the API server's own.
    pub audiences: Vec<String>,
}

/// How long an answer is believed.
const BELIEVED: Duration = Duration::from_secs(10);

/// The most answers that are kept.
const KEPT: usize = 1024;

/// Answers by the keyed hash of their token; no token is kept.
#[derive(Debug, Default)]
pub(super) struct Reviews {
    hasher: RandomState,
    known: HashMap<u64, (Instant, User)>,
}

impl Reviews {
    fn find(&self, token: &str, now: Instant) -> Option<User> {
        let (at, user) = self.known.get(&self.hasher.hash_one(token))?;
        (now.saturating_duration_since(*at) < BELIEVED).then(|| user.clone())
    }

    fn keep(&mut self, token: &str, user: &User, now: Instant) {
        if self.known.len() >= KEPT {
            self.known.retain(|_, (at, _)| now.saturating_duration_since(*at) < BELIEVED);
        }
        if self.known.len() < KEPT {
            self.known.insert(self.hasher.hash_one(token), (now, user.clone()));
        }
    }
}

/// Asks who a token belongs to, unless that was asked a moment ago.
pub(super) async fn who(reviews: &Mutex<Reviews>, how: &Impersonation, token: &str) -> Result<User, Error> {
    if let Some(user) = reviews.lock().find(token, Instant::now()) {
        return Ok(user);
    }
    let user = how.own.review_token(token, &how.audiences).await?;
    reviews.lock().keep(token, &user, Instant::now());
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_believed_for_a_moment_and_their_number_is_bounded() {
        let (start, mut reviews) = (Instant::now(), Reviews::default());
        let user = User { name: "ann".into(), ..User::default() };
        for number in 0..KEPT + 5 {
            reviews.keep(&number.to_string(), &user, start);
        }
        assert_eq!(reviews.known.len(), KEPT);
        assert_eq!(reviews.find("1", start + Duration::from_secs(9)), Some(user.clone()));
        assert_eq!(reviews.find("1", start + Duration::from_secs(10)), None);
        assert_eq!(reviews.find("x", start), None);
        reviews.keep("later", &user, start + Duration::from_secs(11));
        assert_eq!(reviews.known.len(), 1, "the old ones made room");
    }
}
