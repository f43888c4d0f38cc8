//! auth, user, role.

use std::process::ExitCode;

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};

use super::args::{
    OPEN_END, bytes, flag, given_bytes, optional, positional, prefix_range, text, value, word,
};
use super::ctl::Context;
use super::failed::Failed;
use super::format::{range_name, role_lines};
use super::{output, password};
use crate::pb::authpb::permission::Type;
use crate::pb::authpb::{Permission, UserAddOptions};
use crate::pb::etcdserverpb::*;

/// The verbs.
pub fn commands() -> Vec<Command> {
    let group = |name: &'static str, about: &'static str| {
        Command::new(name)
            .about(about)
            .subcommand_required(true)
            .arg_required_else_help(true)
    };
    let auth = group("auth", "Access control: enable, disable, status")
        .subcommand(Command::new("enable").about("Turn it on; needs the user root with the role root"))
        .subcommand(Command::new("disable").about("Turn it off"))
        .subcommand(Command::new("status").about("Whether it is on"));
    vec![auth, user_command(group), role_command(group)]
}

fn user() -> Arg {
    word("username", "The user's name").required(true)
}

fn role() -> Arg {
    word("role", "The role's name").required(true)
}

fn interactive() -> Arg {
    optional(
        "interactive",
        "false: read the password from stdin, once and without asking",
    )
    .value_parser(clap::value_parser!(bool))
    .default_value("true")
    .hide_possible_values(true)
}

fn user_command(group: impl Fn(&'static str, &'static str) -> Command) -> Command {
    let named = |name: &'static str, about: &'static str| Command::new(name).about(about).arg(user());
    group(
        "user",
        "Users: add, delete, get, list, passwd, grant-role, revoke-role",
    )
    .subcommand(
        Command::new("add")
            .about("Add a user; asks for a password if none is given")
            .arg(word("username", "The user's name, or NAME:PASSWORD").required(true))
            .arg(value("new-user-password", "The password"))
            .arg(flag(
                "no-password",
                "Without a password: can log in by certificate only",
            ))
            .arg(interactive()),
    )
    .subcommand(named("delete", "Delete a user"))
    .subcommand(named("get", "The roles of a user").arg(flag("detail", "And what those roles may do")))
    .subcommand(Command::new("list").about("List the users"))
    .subcommand(named("passwd", "Set a user's password").arg(interactive()))
    .subcommand(named("grant-role", "Give a role to a user").arg(role()))
    .subcommand(named("revoke-role", "Take a role from a user").arg(role()))
}

fn role_command(group: impl Fn(&'static str, &'static str) -> Command) -> Command {
    let named = |name: &'static str, about: &'static str| Command::new(name).about(about).arg(role());
    let range = |command: Command| {
        command
            .arg(positional("key", "The key").required(true))
            .arg(positional("endkey", "The key to stop before"))
            .arg(flag("prefix", "All keys that begin with KEY"))
            .arg(flag("from-key", "All keys from KEY on"))
    };
    let grant = named("grant-permission", "Let a role read or write a key or a range")
        .arg(word("type", "read, write or readwrite").required(true));
    group(
        "role",
        "Roles: add, delete, get, list, grant-permission, revoke-permission",
    )
    .subcommand(named("add", "Add a role, which may do nothing at first"))
    .subcommand(named("delete", "Delete a role, and take it from all users"))
    .subcommand(named("get", "What a role may do"))
    .subcommand(Command::new("list").about("List the roles"))
    .subcommand(range(grant))
    .subcommand(range(named(
        "revoke-permission",
        "Take a permission from a role; the range must be the one that was granted",
    )))
}

/// Runs one.
pub async fn run(context: &Context, verb: &str, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let Some((action, matches)) = matches.subcommand() else {
        return Ok(ExitCode::SUCCESS);
    };
    match verb {
        "auth" => run_auth(context, action).await?,
        "user" => run_user(context, action, matches).await?,
        _ => run_role(context, action, matches).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_auth(context: &Context, action: &str) -> Result<(), Failed> {
    match action {
        "enable" => {
            context.client.auth_enable(AuthEnableRequest {}).await?;
            output::line("Authentication Enabled")
        }
        "disable" => {
            context.client.auth_disable(AuthDisableRequest {}).await?;
            output::line("Authentication Disabled")
        }
        _ => {
            let response = context.client.auth_status(AuthStatusRequest {}).await?;
            let said = format!(
                "Authentication Status: {}\nAuthRevision: {}",
                response.enabled, response.auth_revision
            );
            context.print_line(said, &response)
        }
    }
}

async fn run_user(context: &Context, action: &str, matches: &ArgMatches) -> Result<(), Failed> {
    let client = &context.client;
    let name = || text(matches, "username").to_string();
    match action {
        "add" => user_add(context, matches).await,
        "delete" => {
            let response = client.user_delete(AuthUserDeleteRequest { name: name() }).await?;
            context.print_line(format!("User {} deleted", name()), &response)
        }
        "get" => user_get(context, matches).await,
        "passwd" => {
            let request = AuthUserChangePasswordRequest {
                password: new_password(matches, &name())?,
                name: name(),
                ..Default::default()
            };
            let response = client.user_change_password(request).await?;
            context.print_line("Password updated".to_string(), &response)
        }
        "grant-role" => {
            let role = text(matches, "role").to_string();
            let said = format!("Role {role} is granted to user {}", name());
            let request = AuthUserGrantRoleRequest { user: name(), role };
            let response = client.user_grant_role(request).await?;
            context.print_line(said, &response)
        }
        "revoke-role" => {
            let role = text(matches, "role").to_string();
            let said = format!("Role {role} is revoked from user {}", name());
            let request = AuthUserRevokeRoleRequest { name: name(), role };
            let response = client.user_revoke_role(request).await?;
            context.print_line(said, &response)
        }
        _ => {
            let response = client.user_list(AuthUserListRequest {}).await?;
            context.print(lines(&response.users), &response)
        }
    }
}

fn lines(names: &[String]) -> Vec<u8> {
    let lines = names.iter().map(|name| format!("{name}\n"));
    lines.collect::<String>().into_bytes()
}

fn new_password(matches: &ArgMatches, user: &str) -> Result<String, Failed> {
    match matches.get_one::<bool>("interactive") {
        Some(false) => password::read_line(),
        _ => password::ask_twice(user),
    }
}

async fn user_add(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let given = text(matches, "username");
    let no_password = matches.get_flag("no-password");
    let in_option = matches.get_one::<String>("new-user-password").cloned();
    let (name, password) = match (in_option, given.split_once(':')) {
        (Some(password), _) => (given.to_string(), password),
        (None, _) if no_password => (given.to_string(), String::new()),
        (None, Some((name, password))) => (name.to_string(), password.to_string()),
        (None, None) => (given.to_string(), new_password(matches, given)?),
    };
    if name.is_empty() {
        return Err(Failed::arguments("empty user name is not allowed"));
    }
    let request = AuthUserAddRequest {
        name: name.clone(),
        password,
        options: Some(UserAddOptions { no_password }),
        ..Default::default()
    };
    let response = context.client.user_add(request).await?;
    context.print_line(format!("User {name} created"), &response)
}

async fn user_get(context: &Context, matches: &ArgMatches) -> Result<(), Failed> {
    let name = text(matches, "username").to_string();
    let response = context
        .client
        .user_get(AuthUserGetRequest { name: name.clone() })
        .await?;
    if !matches.get_flag("detail") {
        let said = format!("User: {name}\nRoles: {}", response.roles.join(" "));
        return context.print_line(said.trim_end_matches(' ').to_string(), &response);
    }
    output::line(format!("User: {name}"))?;
    for role in response.roles {
        output::line("")?;
        let answer = context
            .client
            .role_get(AuthRoleGetRequest { role: role.clone() })
            .await?;
        context.print(role_lines(&role, &answer), &answer)?;
    }
    Ok(())
}

async fn run_role(context: &Context, action: &str, matches: &ArgMatches) -> Result<(), Failed> {
    let client = &context.client;
    let role = || text(matches, "role").to_string();
    match action {
        "add" => {
            let response = client.role_add(AuthRoleAddRequest { name: role() }).await?;
            context.print_line(format!("Role {} created", role()), &response)
        }
        "delete" => {
            let response = client.role_delete(AuthRoleDeleteRequest { role: role() }).await?;
            context.print_line(format!("Role {} deleted", role()), &response)
        }
        "get" => {
            let response = client.role_get(AuthRoleGetRequest { role: role() }).await?;
            context.print(role_lines(&role(), &response), &response)
        }
        "grant-permission" => {
            let (key, range_end) = permission_range(matches)?;
            let permission = Permission {
                perm_type: permission_type(text(matches, "type"))? as i32,
                key,
                range_end,
            };
            let request = AuthRoleGrantPermissionRequest {
                name: role(),
                perm: Some(permission),
            };
            let response = client.role_grant_permission(request).await?;
            context.print_line(format!("Role {} updated", role()), &response)
        }
        "revoke-permission" => {
            let (key, range_end) = permission_range(matches)?;
            let said = revoked(&key, &range_end, &role());
            let request = AuthRoleRevokePermissionRequest {
                role: role(),
                key,
                range_end,
            };
            let response = client.role_revoke_permission(request).await?;
            context.print(said, &response)
        }
        _ => {
            let response = client.role_list(AuthRoleListRequest {}).await?;
            context.print(lines(&response.roles), &response)
        }
    }
}

fn revoked(key: &[u8], range_end: &[u8], role: &str) -> Vec<u8> {
    let what = if range_end.is_empty() { "key" } else { "range" };
    let range = range_name(key, range_end);
    let (head, tail) = (
        format!("Permission of {what} "),
        format!(" is revoked from role {role}\n"),
    );
    [head.as_bytes(), &range, tail.as_bytes()].concat()
}

fn permission_type(text: &str) -> Result<Type, Failed> {
    match text.to_lowercase().as_str() {
        "read" => Ok(Type::Read),
        "write" => Ok(Type::Write),
        "readwrite" => Ok(Type::Readwrite),
        _ => Err(Failed::arguments(format!(
            "invalid permission type: {text}; read, write or readwrite"
        ))),
    }
}

fn permission_range(matches: &ArgMatches) -> Result<(Bytes, Bytes), Failed> {
    let (key, end) = (bytes(matches, "key"), given_bytes(matches, "endkey"));
    match (matches.get_flag("prefix"), matches.get_flag("from-key"), end) {
        (true, true, _) => Err(Failed::arguments(
            "--from-key and --prefix flags are mutually exclusive",
        )),
        (true, _, Some(_)) => Err(Failed::arguments("unexpected endkey argument with --prefix flag")),
        (_, true, Some(_)) => Err(Failed::arguments(
            "unexpected endkey argument with --from-key flag",
        )),
        (true, ..) => Ok(prefix_range(key)),
        (_, true, None) => Ok((prefix_range(key).0, OPEN_END)),
        (_, _, end) => Ok((key, end.unwrap_or_default())),
    }
}
