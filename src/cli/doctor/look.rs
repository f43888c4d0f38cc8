//! Asking the members: their list of each other, then each for its status and its pages.

use std::time::{Duration, SystemTime};

use http::Request;
use http_body_util::BodyExt;
use tonic::transport::Channel;
use tower::ServiceExt;

use crate::cli::ctl::Context;
use crate::pb::etcdserverpb::{Member, StatusResponse};

/// How long a page may take.
const PAGE: Duration = Duration::from_secs(3);
/// Most bytes of one.
const PAGE_BYTES: usize = 16 << 20;

/// The members, as they are seen from here.
pub struct Cluster {
    /// All of the list; those that were given, if nobody has a list.
    pub members: Vec<Seen>,
    /// Whether somebody told who the members are.
    pub is_listed: bool,
}

/// One member.
pub struct Seen {
    /// Its name; its id if it has none yet; the endpoint if nothing else is known.
    pub name: String,
    /// Whether it has a vote.
    pub is_voter: bool,
    /// Where clients reach it, as it says itself; nowhere before its first start.
    pub urls: Vec<String>,
    /// Its status, or why there is none.
    pub status: Result<StatusResponse, String>,
    /// What its pages say.
    pub pages: Pages,
}

/// What a member's `/metrics` say, as far as it has such.
#[derive(Default)]
pub struct Pages {
    /// How many seconds its clock is ahead of the one here, give or take one.
    pub ahead: Option<i64>,
    /// The program's version.
    pub version: Option<String>,
    /// Files in use, and how many may be.
    pub files: Option<(u64, u64)>,
    /// 99 of 100 syncs of the log took no longer, in seconds.
    pub sync: Option<f64>,
}

impl Cluster {
    /// Whether nobody answers.
    pub fn is_silent(&self) -> bool {
        self.members.iter().all(|member| member.status.is_err())
    }
}

/// Finds and asks them all.
pub async fn members(context: &Context) -> Cluster {
    let list = context.client.member_list().await;
    let is_listed = list.is_ok();
    let members = match list {
        Ok(list) => list.members.into_iter().map(listed).collect(),
        Err(_) => context
            .client
            .endpoints()
            .iter()
            .map(|endpoint| given(endpoint))
            .collect::<Vec<_>>(),
    };
    let asked = members.into_iter().map(|member| ask(context, member));
    Cluster {
        members: futures::future::join_all(asked).await,
        is_listed,
    }
}

fn listed(member: Member) -> Seen {
    let name = match member.name.is_empty() {
        true => format!("{:x}", member.id),
        false => member.name,
    };
    not_asked(name, !member.is_learner, member.client_ur_ls)
}

fn given(endpoint: &str) -> Seen {
    not_asked(endpoint.to_string(), true, vec![endpoint.to_string()])
}

fn not_asked(name: String, is_voter: bool, urls: Vec<String>) -> Seen {
    Seen {
        name,
        is_voter,
        urls,
        status: Err("it has not started yet".to_string()),
        pages: Pages::default(),
    }
}

/// At the first of its addresses that answers.
async fn ask(context: &Context, mut member: Seen) -> Seen {
    for url in member.urls.clone() {
        let status = match context.client.of(&url) {
            Ok(client) => client.status().await,
            Err(error) => Err(error),
        };
        match status {
            Ok(status) => {
                member.status = Ok(status);
                member.pages = pages(context, &url).await.unwrap_or_default();
                break;
            }
            Err(error) => member.status = Err(error.to_string()),
        }
    }
    member
}

/// etcd has its pages for HTTP/1 only where nothing is encrypted: then there are none.
async fn pages(context: &Context, url: &str) -> Option<Pages> {
    let channel = context.options.connect(url, Some(PAGE)).await.ok()?;
    let (date, text) = page(channel, "/metrics").await?;
    Some(Pages {
        ahead: date.map(ahead),
        version: labelled(&text, "pontoon_version{version=\""),
        files: number(&text, "process_open_fds").zip(number(&text, "process_max_fds")),
        sync: quantile(&text, "etcd_disk_wal_fsync_duration_seconds", 0.99),
    })
}

async fn page(channel: Channel, path: &str) -> Option<(Option<SystemTime>, String)> {
    let request = Request::get(path).body(tonic::body::Body::empty()).ok()?;
    let answer = channel.oneshot(request).await.ok()?;
    if !answer.status().is_success() {
        return None;
    }
    let date = answer.headers().get(http::header::DATE);
    let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let body = http_body_util::Limited::new(answer.into_body(), PAGE_BYTES);
    let bytes = body.collect().await.ok()?.to_bytes();
    Some((date, String::from_utf8(bytes.to_vec()).ok()?))
}

/// In whole seconds, as the header has no more.
fn ahead(date: SystemTime) -> i64 {
    let seconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs() as i64)
    };
    seconds(date) - seconds(SystemTime::now())
}

fn labelled(page: &str, begin: &str) -> Option<String> {
    let rest = page.lines().find_map(|line| line.strip_prefix(begin))?;
    Some(rest.split('"').next()?.to_string())
}

fn number(page: &str, name: &str) -> Option<u64> {
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(value.parse::<f64>().ok()? as u64)
}

/// The bound of the bucket in which this share of a histogram ends; none if nothing was counted.
fn quantile(page: &str, name: &str, share: f64) -> Option<f64> {
    let bucket = |line: &str| {
        let rest = line.strip_prefix(name)?.strip_prefix("_bucket{le=\"")?;
        let (bound, count) = rest.split_once("\"} ")?;
        Some((bound.parse::<f64>().ok()?, count.parse::<f64>().ok()?))
    };
    let buckets: Vec<(f64, f64)> = page.lines().filter_map(bucket).collect();
    let (_, all) = *buckets.last()?;
    let (bound, _) = buckets.iter().find(|(_, count)| *count >= share * all)?;
    (all > 0.0).then_some(*bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE a histogram\na_bucket{le=\"0.001\"} 50\na_bucket{le=\"0.016\"} 99\n\
                        a_bucket{le=\"+Inf\"} 100\nprocess_open_fds 12\nprocess_max_fds 1024\n\
                        pontoon_version{version=\"0.1.0\"} 1\nb_bucket{le=\"+Inf\"} 0\n";

    #[test]
    fn a_page_is_understood() {
        assert_eq!(quantile(PAGE, "a", 0.99), Some(0.016));
        assert_eq!(quantile(PAGE, "a", 0.5), Some(0.001));
        assert_eq!(quantile(PAGE, "a", 0.999), Some(f64::INFINITY));
        assert_eq!(quantile(PAGE, "b", 0.99), None);
        assert_eq!(quantile(PAGE, "c", 0.99), None);
        assert_eq!(number(PAGE, "process_max_fds"), Some(1024));
        assert_eq!(
            labelled(PAGE, "pontoon_version{version=\"").as_deref(),
            Some("0.1.0")
        );
    }
}
