//! The members: who they are, where each is reached, who leads, and how far each has got.

use std::time::{Duration, Instant};

use crate::client::{Client, ClientError, Options};
use crate::pb::etcdserverpb::{MemberListRequest, StatusResponse};

/// How long a member may take to say how it stands.
const STATUS: Duration = Duration::from_secs(1);
/// Between two signs of life that are asked for.
const PULSE: Duration = Duration::from_millis(2);

/// One member.
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// Where clients reach it.
    pub url: String,
    /// Whether it has a vote.
    pub is_voter: bool,
    /// For what it says of itself.
    client: Client,
}

/// All of them, voters first.
pub struct Members(Vec<Member>);

/// Who leads when all is well.
#[derive(Debug, Clone, Copy)]
pub struct Leader {
    /// In which place among the members.
    pub place: usize,
    /// Since this term.
    pub term: u64,
}

impl Members {
    /// Those of the cluster behind these addresses. Each has to be reached by one of them, or where it says that it is.
    pub async fn find(given: &[String], options: &Options) -> Result<Members, String> {
        let list = Client::with(given, options.clone()).map_err(|error| error.to_string())?;
        let list = list.member_list_as(MemberListRequest { linearizable: false });
        let list = list.await.map_err(|error| error.to_string())?.members;
        let options = Options {
            timeout: options.timeout.min(STATUS),
            ..options.clone()
        };
        let advertised = list.iter().flat_map(|member| &member.client_ur_ls);
        let mut reached: Vec<(u64, String, Client)> = Vec::new();
        for url in given.iter().chain(advertised) {
            if let Ok((id, client)) = who_is(url, &options).await
                && reached.iter().all(|(known, ..)| *known != id)
            {
                reached.push((id, url.clone(), client));
            }
        }
        let mut members = Vec::new();
        for listed in list {
            let place = reached.iter().position(|(id, ..)| *id == listed.id);
            let (id, url, client) = place.map(|place| reached.swap_remove(place)).ok_or_else(|| {
                format!(
                    "{} does not answer at {}: start it, or give the addresses of all members by --endpoints",
                    listed.name,
                    listed.client_ur_ls.join(",")
                )
            })?;
            members.push(Member {
                name: listed.name,
                id,
                url,
                is_voter: !listed.is_learner,
                client,
            });
        }
        members.sort_by_key(|member| (!member.is_voter, member.name.clone()));
        Ok(Members(members))
    }

    /// All of them.
    pub fn all(&self) -> &[Member] {
        &self.0
    }

    /// Those that have a vote: the first ones.
    pub fn voters(&self) -> &[Member] {
        let count = self.0.iter().filter(|member| member.is_voter).count();
        &self.0[..count]
    }

    /// Where clients reach the voters.
    pub fn urls(&self) -> Vec<String> {
        self.voters().iter().map(|member| member.url.clone()).collect()
    }

    async fn statuses(&self) -> Vec<Option<StatusResponse>> {
        let asked = self.0.iter().map(|member| member.client.status());
        let answers = futures::future::join_all(asked).await;
        answers.into_iter().map(Result::ok).collect()
    }

    /// Which of them leads, if all answer, agree on it and have applied what the leader had.
    pub async fn whole(&self) -> Option<Leader> {
        let before = self.statuses().await;
        let leader = before.first()?.as_ref()?.leader;
        let place = self.0.iter().position(|member| member.id == leader)?;
        let before = before[place].as_ref()?;
        let is_there = |status: Option<StatusResponse>| {
            status.is_some_and(|status| {
                status.leader == leader && status.raft_applied_index >= before.raft_applied_index
            })
        };
        let all_are = self.statuses().await.into_iter().all(is_there);
        all_are.then_some(Leader {
            place,
            term: before.raft_term,
        })
    }

    /// Whether a member has applied what the leader has. The leader is asked first.
    pub async fn has_caught_up(&self, member: usize) -> Option<()> {
        let statuses = self.statuses().await;
        let leader = statuses
            .iter()
            .zip(&self.0)
            .filter_map(|(status, member)| status.as_ref().filter(|status| status.leader == member.id))
            .max_by_key(|status| status.raft_term)?;
        let now = self.0[member].client.status().await.ok()?;
        let follows = now.leader == leader.leader && now.raft_term == leader.raft_term;
        (follows && now.raft_applied_index >= leader.raft_applied_index).then_some(())
    }
}

impl Member {
    /// Does something to it, and asks it for signs of life meanwhile. When it gave the last one is when the question was
    /// asked: at that time it still lived. `behind` is told when that may have been the last one; that an answer takes its
    /// time proves nothing.
    pub async fn last_seen_alive<T>(
        &self,
        during: impl Future<Output = T>,
        behind: impl Fn(),
    ) -> (T, Instant) {
        let (mut last, mut lives) = (Instant::now(), true);
        let mut during = std::pin::pin!(during);
        loop {
            let asked = Instant::now();
            if lives {
                behind();
            }
            let pulse = async {
                let answer = self.client.status().await;
                tokio::time::sleep(PULSE).await;
                answer.is_ok()
            };
            tokio::select! {
                done = &mut during => {
                    if lives {
                        behind();
                    }
                    return (done, last);
                }
                answered = pulse => {
                    lives = answered;
                    if lives {
                        last = asked;
                    }
                }
            }
        }
    }
}

async fn who_is(url: &str, options: &Options) -> Result<(u64, Client), ClientError> {
    let client = Client::with(&[url.to_string()], options.clone())?;
    let status = client.status().await?;
    Ok((status.header.map_or(0, |header| header.member_id), client))
}
