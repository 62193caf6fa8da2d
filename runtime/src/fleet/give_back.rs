//! Gives a shard back that failed here too often, so that another worker may try.
//! In: a shard without actors. Out: a last commit under a new epoch that names no owner; or the shard stays this
//! worker's.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::warn;

use crate::clock::sleep;
use crate::message::ShardNo;
use crate::shard::env::Env;
use crate::shard::supervisor::runs_ended;
use crate::store::{Commit, CommitOutcome, StoreError};

/// The number of attempts while the store is not available.
const TRIES: u32 = 5;
/// The pause between two attempts.
const AGAIN: Duration = Duration::from_millis(500);

/// Gives one shard back, then ends.
pub(crate) struct GiveBack;

/// The arguments of a [`GiveBack`].
pub(crate) struct GiveBackArgs {
    pub(crate) env: Arc<Env>,
    pub(crate) shard: ShardNo,
    pub(crate) live: Arc<AtomicUsize>,
}

impl Actor for GiveBack {
    type Msg = ();
    type State = GiveBackArgs;
    type Arguments = GiveBackArgs;

    async fn pre_start(&self, _: ActorRef<()>, args: GiveBackArgs) -> Result<GiveBackArgs, ActorProcessingErr> {
        Ok(args)
    }

    async fn post_start(&self, myself: ActorRef<()>, args: &mut GiveBackArgs) -> Result<(), ActorProcessingErr> {
        runs_ended(&args.live).await?;
        for _ in 0..TRIES {
            match release(&args.env, args.shard).await {
                Ok(()) => break,
                Err(error) => {
                    warn!(shard = args.shard, %error, "shard could not be given back, trying again");
                    sleep(AGAIN).await;
                }
            }
        }
        myself.stop(None);
        Ok(())
    }
}

/// The reason why a shard was not given back.
#[derive(Debug, thiserror::Error)]
enum ReleaseError {
    #[error(transparent)]
    Take(#[from] StoreError),
    /// In the store's words.
    #[error("{0}")]
    Commit(String),
}

async fn release(env: &Env, shard: ShardNo) -> Result<(), ReleaseError> {
    let taken = match env.store.take(shard, &env.owner()).await {
        Ok(taken) => taken,
        // Another worker has it already.
        Err(StoreError::Owned { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let commit = Commit {
        shard,
        epoch: taken.epoch,
        no: taken.commit_no + 1,
        at: env.clock.now(),
        positions: taken.positions,
        ahead: taken.ahead,
        watermarks: taken.watermarks,
        counters: taken.counters,
        first_seq: taken.outbox_seq + 1,
        release: true,
        ..Commit::default()
    };
    match env.store.commit(&commit).await {
        CommitOutcome::Committed | CommitOutcome::Fenced => Ok(()),
        CommitOutcome::Refused { error, .. } | CommitOutcome::Unavailable(error) | CommitOutcome::Unknown(error) => {
            Err(ReleaseError::Commit(error))
        }
    }
}
