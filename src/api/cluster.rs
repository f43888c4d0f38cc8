//! The members of the cluster.

use tonic::{Request, Response, Status};

use super::{credentials, header, status};
use crate::error::Error;
use crate::pb::etcdserverpb::cluster_server::Cluster as Service;
use crate::pb::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse, ResponseHeader,
};
use crate::pb::pontoon::peer::change_members_request::Change;
use crate::pb::pontoon::peer::{AddMember, PromoteMember, RemoveMember, UpdateMember};
use crate::server::Server;
use crate::server::auth::Credentials;

/// The Cluster service.
pub struct Cluster {
    server: Server,
}

impl Cluster {
    /// Serves `server`.
    pub fn new(server: Server) -> Self {
        Cluster { server }
    }

    /// Makes a change, and lists the members as they are then; with the id of the one that was added.
    async fn change(&self, who: &Credentials, change: Change) -> Result<(u64, Vec<Member>), Status> {
        self.server.permit_root(who).await.map_err(status)?;
        let id = self.server.membership().change(change).await.map_err(status)?;
        Ok((id, self.server.members()))
    }

    /// etcd leaves the revision out of this service's headers.
    fn header(&self) -> Option<ResponseHeader> {
        Some(header(&self.server, 0))
    }
}

/// Peer URLs as etcd takes them: a scheme and nothing but a place; sorted.
fn check_urls(urls: Vec<String>) -> Result<Vec<String>, Status> {
    let mut urls: Vec<String> = urls.iter().map(|url| url.trim().to_string()).collect();
    if urls.is_empty() || !urls.iter().all(|url| is_place(url)) {
        return Err(status(Error::BadMemberUrls));
    }
    urls.sort();
    Ok(urls)
}

fn is_place(url: &str) -> bool {
    let Some((scheme, place)) = url.split_once("://") else {
        return false;
    };
    match scheme {
        "unix" | "unixs" => !place.is_empty(),
        "http" | "https" => {
            let port = place.rsplit_once(':').map(|(_, port)| port);
            // An IPv6 address has colons too, within brackets.
            let has_port = port.is_some_and(|port| port.parse::<u16>().is_ok()) && !place.ends_with(']');
            has_port && !place.contains(['/', '?', '#', '@', ' '])
        }
        _ => false,
    }
}

#[tonic::async_trait]
impl Service for Cluster {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.server.barrier().pass().await.map_err(status)?;
        }
        Ok(Response::new(MemberListResponse {
            header: self.header(),
            members: self.server.members(),
        }))
    }

    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        let add = AddMember {
            peer_urls: check_urls(request.peer_ur_ls)?,
            is_learner: request.is_learner,
        };
        let (id, members) = self.change(&who, Change::Add(add)).await?;
        Ok(Response::new(MemberAddResponse {
            header: self.header(),
            member: members.iter().find(|member| member.id == id).cloned(),
            members,
        }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let who = credentials(&request);
        let id = request.into_inner().id;
        let (_, members) = self.change(&who, Change::Remove(RemoveMember { id })).await?;
        let header = self.header();
        Ok(Response::new(MemberRemoveResponse { header, members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let who = credentials(&request);
        let request = request.into_inner();
        let update = UpdateMember {
            id: request.id,
            peer_urls: check_urls(request.peer_ur_ls)?,
        };
        let (_, members) = self.change(&who, Change::Update(update)).await?;
        let header = self.header();
        Ok(Response::new(MemberUpdateResponse { header, members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let who = credentials(&request);
        let id = request.into_inner().id;
        let (_, members) = self.change(&who, Change::Promote(PromoteMember { id })).await?;
        let header = self.header();
        Ok(Response::new(MemberPromoteResponse { header, members }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_a_scheme_and_a_place() {
        for good in [
            "http://10.0.0.1:2380",
            "https://n1.example:1",
            "http://[::1]:2380",
            "unix://sock",
        ] {
            assert!(is_place(good), "{good}");
        }
        for bad in [
            "",
            "10.0.0.1:2380",
            "http://10.0.0.1",
            "http://[::1]",
            "ftp://h:1",
            "http://h:1/path",
            "http://h:x",
            "unix://",
        ] {
            assert!(!is_place(bad), "{bad}");
        }
        assert!(check_urls(Vec::new()).is_err());
        assert_eq!(
            check_urls(vec!["http://b:1".into(), "http://a:1".into()]).expect("valid"),
            ["http://a:1", "http://b:1"]
        );
    }
}
