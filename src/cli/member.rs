//! member list, add, remove, update, promote.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use super::args::{flag, member_id, text, value, word};
use super::ctl::Context;
use super::failed::Failed;
use super::format::{Form, member_lines};
use super::output;
use crate::pb::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, ResponseHeader,
};

/// The verbs.
pub fn commands() -> Vec<Command> {
    let id = || {
        word(
            "id",
            "The member, by its id in hexadecimal, as `member list` shows it",
        )
        .required(true)
    };
    let peer_urls = |help| -> Arg {
        value("peer-urls", help)
            .default_value("")
            .hide_default_value(true)
    };
    let add = Command::new("add")
        .about("Make room for a new member; prints the settings to start it with")
        .arg(word("name", "Its name").required(true))
        .arg(peer_urls("Where the others will reach it, comma-separated URLs"))
        .arg(flag(
            "learner",
            "It only learns at first, and has no vote until it is promoted",
        ));
    let update = Command::new("update")
        .about("Change where the others reach a member")
        .arg(id())
        .arg(peer_urls("Its new addresses, comma-separated URLs"));
    vec![
        Command::new("member")
            .about("The members of the cluster: list, add, remove, update, promote")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(Command::new("list").about("List the members"))
            .subcommand(add)
            .subcommand(
                Command::new("remove")
                    .about("Take a member out of the cluster, for good")
                    .arg(id()),
            )
            .subcommand(update)
            .subcommand(
                Command::new("promote")
                    .about("Give a learner that has caught up its vote")
                    .arg(id()),
            ),
    ]
}

/// Runs one.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let client = &context.client;
    match matches.subcommand() {
        Some(("add", matches)) => return add(context, matches).await,
        Some(("remove", matches)) => {
            let id = member_id(text(matches, "id"))?;
            let response = client.member_remove(MemberRemoveRequest { id }).await?;
            let said = in_cluster("removed from", id, response.header.as_ref());
            context.print_line(said, &response)?;
        }
        Some(("update", matches)) => {
            let id = member_id(text(matches, "id"))?;
            let peer_ur_ls = peer_urls(matches)?;
            let request = MemberUpdateRequest { id, peer_ur_ls };
            let response = client.member_update(request).await?;
            let said = in_cluster("updated in", id, response.header.as_ref());
            context.print_line(said, &response)?;
        }
        Some(("promote", matches)) => {
            let id = member_id(text(matches, "id"))?;
            let response = client.member_promote(MemberPromoteRequest { id }).await?;
            let said = in_cluster("promoted in", id, response.header.as_ref());
            context.print_line(said, &response)?;
        }
        _ => {
            let response = client.member_list().await?;
            context.print(member_lines(&response), &response)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn in_cluster(what: &str, id: u64, header: Option<&ResponseHeader>) -> String {
    let cluster = header.map_or(0, |header| header.cluster_id);
    format!("Member {id:16x} {what} cluster {cluster:16x}")
}

fn peer_urls(matches: &ArgMatches) -> Result<Vec<String>, Failed> {
    let urls = text(matches, "peer-urls");
    match urls.is_empty() {
        true => Err(Failed::arguments("member peer urls not provided: --peer-urls")),
        false => Ok(urls.split(',').map(str::to_string).collect()),
    }
}

async fn add(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let name = text(matches, "name");
    let peer_ur_ls = peer_urls(matches)?;
    let request = MemberAddRequest {
        peer_ur_ls,
        is_learner: matches.get_flag("learner"),
    };
    let response = context.client.member_add(request).await?;
    let id = response.member.as_ref().map_or(0, |member| member.id);
    let said = in_cluster("added to", id, response.header.as_ref());
    context.print_line(said, &response)?;
    if context.form == Form::Simple {
        output::write(hints(name, &response).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The settings for the new member: a shell can source them.
fn hints(name: &str, response: &MemberAddResponse) -> String {
    let new = response.member.clone().unwrap_or_default();
    let urls = |member: &Member| {
        let name = if member.id == new.id { name } else { &member.name };
        let urls = member.peer_ur_ls.iter().map(|url| format!("{name}={url}"));
        urls.collect::<Vec<_>>()
    };
    let cluster: Vec<String> = response.members.iter().flat_map(urls).collect();
    format!(
        "\nETCD_NAME=\"{name}\"\nETCD_INITIAL_CLUSTER=\"{}\"\nETCD_INITIAL_ADVERTISE_PEER_URLS=\"{}\"\n\
         ETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
        cluster.join(","),
        new.peer_ur_ls.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hints_name_all_members() {
        let member = |id, name: &str, urls: &[&str]| Member {
            id,
            name: name.to_string(),
            peer_ur_ls: urls.iter().map(ToString::to_string).collect(),
            ..Member::default()
        };
        let new = member(2, "", &["http://c:1", "http://d:1"]);
        let response = MemberAddResponse {
            member: Some(new.clone()),
            members: vec![member(1, "a", &["http://b:1"]), new],
            ..Default::default()
        };
        let expected = "\nETCD_NAME=\"n\"\nETCD_INITIAL_CLUSTER=\"a=http://b:1,n=http://c:1,n=http://d:1\"\n\
            ETCD_INITIAL_ADVERTISE_PEER_URLS=\"http://c:1,http://d:1\"\nETCD_INITIAL_CLUSTER_STATE=\"existing\"\n";
        assert_eq!(hints("n", &response), expected);
    }
}
