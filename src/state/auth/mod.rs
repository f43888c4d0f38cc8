//! Who may do what: users, their roles, and the keys that roles give access to.
//!
//! [`Auth`] is the whole of it, decoded for asking. It changes by commands only, as everything here does: passwords are
//! hashed and tokens made before the log. Each change raises the auth revision by one. A command carries its user's
//! name and the revision at which that user was known; if the revision has moved on when the command is applied, the
//! user may be gone, or be somebody else of the same name, so the command is refused and its proposer asks anew.
//!
//! What is stored are etcd's own records (`authpb`), so that backups move them both ways.
//!
//! [`permit`] says what each command needs; [`intervals`] how the keys of several roles add up.

mod intervals;
mod permit;

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use self::intervals::{Intervals, interval};
use super::Failure;
use crate::error::Error;
use crate::mvcc::{Store, Write};
use crate::pb::authpb::{Permission, Role, User, permission::Type};
use crate::pb::etcdserverpb::{
    AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest,
};
use crate::pb::pontoon::command::auth_change::Change;
use crate::pb::pontoon::command::{AuthChange, AuthStatus, Authenticate, Authenticated};
use crate::storage::keys;

pub use permit::{Access, Who};

/// The user, and the role, that may do everything.
const ROOT: &str = "root";
/// The auth revision of a new cluster (etcd's).
const FIRST: u64 = 1;

/// Users, roles and whether anybody asks for them. A value: who holds one sees no later change.
#[derive(Debug, Clone)]
pub struct Auth {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Role>,
    /// What each user's roles add up to.
    granted: BTreeMap<String, Granted>,
}

/// The keys that a user may read and write.
#[derive(Debug, Clone, Default)]
struct Granted {
    everything: bool,
    read: Intervals,
    write: Intervals,
}

impl Default for Auth {
    fn default() -> Self {
        Auth {
            enabled: false,
            revision: FIRST,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            granted: BTreeMap::new(),
        }
    }
}

impl Auth {
    /// As the store has it.
    pub(super) fn load(store: &Store) -> Auth {
        let mut auth = Auth::default();
        // Written by `put_status`: what can't be read was written by a newer version.
        let status = store.record(&keys::auth_status());
        if let Some(Ok(status)) = status.map(AuthStatus::decode) {
            auth.enabled = status.enabled;
            auth.revision = status.revision;
        }
        auth.users = decoded(store.records(keys::users()), |user: &User| &user.name);
        auth.roles = decoded(store.records(keys::roles()), |role: &Role| &role.name);
        let names: Vec<String> = auth.users.keys().cloned().collect();
        names.iter().for_each(|name| auth.add_up(name));
        auth
    }

    /// Whether users are asked for.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Raised by every change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Names of all users.
    pub fn users(&self) -> impl Iterator<Item = &String> {
        self.users.keys()
    }

    /// Names of all roles.
    pub fn roles(&self) -> impl Iterator<Item = &String> {
        self.roles.keys()
    }

    /// The roles of a user.
    pub fn user(&self, name: &str) -> Result<&[String], Error> {
        self.users
            .get(name)
            .map(|user| &user.roles[..])
            .ok_or(Error::UserNotFound)
    }

    /// The permissions of a role. What root may do is in no record, but asked of it only if it was made, as in etcd.
    pub fn role(&self, name: &str) -> Result<Vec<Permission>, Error> {
        let everything = || Permission {
            perm_type: Type::Readwrite as i32,
            key: Bytes::new(),
            range_end: Bytes::from_static(b"\0"),
        };
        match self.roles.get(name) {
            Some(_) if name == ROOT => Ok(vec![everything()]),
            Some(role) => Ok(role.key_permission.clone()),
            None => Err(Error::RoleNotFound),
        }
    }

    /// The hash that a user's password is held against; nothing if there is no such user, or it has none.
    pub fn password_hash(&self, name: &str) -> Option<&[u8]> {
        let user = self.users.get(name)?;
        (!has_no_password(user)).then_some(&user.password[..])
    }

    fn is_root(&self, name: &str) -> bool {
        self.granted.get(name).is_some_and(|granted| granted.everything)
    }

    /// Works out what a user's roles add up to.
    fn add_up(&mut self, name: &str) {
        let Some(user) = self.users.get(name) else {
            self.granted.remove(name);
            return;
        };
        let permissions = || {
            user.roles
                .iter()
                .filter_map(|role| self.roles.get(role))
                .flat_map(|role| &role.key_permission)
        };
        let of = |access: Type| {
            let kinds = [access as i32, Type::Readwrite as i32];
            let granted = permissions().filter(|permission| kinds.contains(&permission.perm_type));
            Intervals::union(
                granted
                    .map(|permission| interval(&permission.key, &permission.range_end))
                    .collect(),
            )
        };
        let granted = Granted {
            everything: user.roles.iter().any(|role| role == ROOT),
            read: of(Type::Read),
            write: of(Type::Write),
        };
        self.granted.insert(name.to_string(), granted);
    }

    /// Carries out a change of users, roles or whether they are asked for. A refused one changes nothing.
    pub(super) fn change(&mut self, write: &mut Write<'_>, change: &AuthChange) -> Result<(), Failure> {
        match change.change.as_ref() {
            Some(Change::Enable(_)) => self.enable(write)?,
            Some(Change::Disable(_)) => self.disable(write),
            Some(Change::UserAdd(request)) => self.user_add(write, request)?,
            Some(Change::UserDelete(request)) => self.user_delete(write, &request.name)?,
            Some(Change::UserChangePassword(request)) => self.change_password(write, request)?,
            Some(Change::UserGrantRole(request)) => self.grant_role(write, &request.user, &request.role)?,
            Some(Change::UserRevokeRole(request)) => self.revoke_role(write, &request.name, &request.role)?,
            Some(Change::RoleAdd(request)) => self.role_add(write, &request.name)?,
            Some(Change::RoleDelete(request)) => self.role_delete(write, &request.role)?,
            Some(Change::RoleGrantPermission(request)) => self.grant_permission(write, request)?,
            Some(Change::RoleRevokePermission(request)) => self.revoke_permission(write, request)?,
            // Of a newer version: nothing that this one knows how to do.
            None => {}
        }
        Ok(())
    }

    /// A token for a user whose password was found right at the revision that the command carries.
    pub(super) fn authenticate(
        &self,
        index: u64,
        request: &Authenticate,
        revision: u64,
    ) -> Result<Authenticated, Error> {
        if !self.enabled {
            return Err(Error::AuthNotEnabled);
        }
        if revision != self.revision {
            return Err(Error::AuthOldRevision);
        }
        if !self.users.contains_key(&request.name) {
            return Err(Error::AuthFailed);
        }
        // etcd's form: a member knows from it how far it must have applied to know the token.
        Ok(Authenticated {
            user: request.name.clone(),
            token: format!("{}.{index}", request.secret),
        })
    }

    fn enable(&mut self, write: &mut Write<'_>) -> Result<(), Error> {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT).ok_or(Error::RootUserNotExist)?;
        if !root.roles.iter().any(|role| role == ROOT) {
            return Err(Error::RootRoleNotExist);
        }
        self.enabled = true;
        self.put_status(write);
        Ok(())
    }

    fn disable(&mut self, write: &mut Write<'_>) {
        if self.enabled {
            self.enabled = false;
            self.changed(write);
        }
    }

    fn user_add(&mut self, write: &mut Write<'_>, request: &AuthUserAddRequest) -> Result<(), Error> {
        if request.name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.users.contains_key(&request.name) {
            return Err(Error::UserAlreadyExists);
        }
        let user = User {
            name: Bytes::from(request.name.clone()),
            password: Bytes::from(request.hashed_password.clone()),
            roles: Vec::new(),
            options: request.options,
        };
        self.put_user(write, user);
        self.changed(write);
        Ok(())
    }

    fn user_delete(&mut self, write: &mut Write<'_>, name: &str) -> Result<(), Error> {
        if self.enabled && name == ROOT {
            return Err(Error::InvalidAuthManagement);
        }
        self.users.remove(name).ok_or(Error::UserNotFound)?;
        write.set_record(keys::user(name), None);
        self.add_up(name);
        self.changed(write);
        Ok(())
    }

    fn change_password(
        &mut self,
        write: &mut Write<'_>,
        request: &AuthUserChangePasswordRequest,
    ) -> Result<(), Error> {
        let mut user = self
            .users
            .get(&request.name)
            .cloned()
            .ok_or(Error::UserNotFound)?;
        if !has_no_password(&user) {
            user.password = Bytes::from(request.hashed_password.clone());
        }
        self.put_user(write, user);
        self.changed(write);
        Ok(())
    }

    fn grant_role(&mut self, write: &mut Write<'_>, name: &str, role: &str) -> Result<(), Error> {
        let mut user = self.users.get(name).cloned().ok_or(Error::UserNotFound)?;
        if role != ROOT && !self.roles.contains_key(role) {
            return Err(Error::RoleNotFound);
        }
        let Err(at) = user.roles.binary_search_by(|had| had.as_str().cmp(role)) else {
            return Ok(());
        };
        user.roles.insert(at, role.to_string());
        self.put_user(write, user);
        self.changed(write);
        Ok(())
    }

    fn revoke_role(&mut self, write: &mut Write<'_>, name: &str, role: &str) -> Result<(), Error> {
        if self.enabled && name == ROOT && role == ROOT {
            return Err(Error::InvalidAuthManagement);
        }
        let mut user = self.users.get(name).cloned().ok_or(Error::UserNotFound)?;
        let at = user
            .roles
            .iter()
            .position(|had| had == role)
            .ok_or(Error::RoleNotGranted)?;
        user.roles.remove(at);
        self.put_user(write, user);
        self.changed(write);
        Ok(())
    }

    fn role_add(&mut self, write: &mut Write<'_>, name: &str) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(Error::RoleAlreadyExists);
        }
        let role = Role {
            name: Bytes::from(name.to_string()),
            key_permission: Vec::new(),
        };
        self.put_role(write, role);
        self.changed(write);
        Ok(())
    }

    fn role_delete(&mut self, write: &mut Write<'_>, name: &str) -> Result<(), Error> {
        if self.enabled && name == ROOT {
            return Err(Error::InvalidAuthManagement);
        }
        self.roles.remove(name).ok_or(Error::RoleNotFound)?;
        write.set_record(keys::role(name), None);
        for mut user in self.users_of(name) {
            user.roles.retain(|role| role != name);
            self.put_user(write, user);
        }
        self.changed(write);
        Ok(())
    }

    fn grant_permission(
        &mut self,
        write: &mut Write<'_>,
        request: &AuthRoleGrantPermissionRequest,
    ) -> Result<(), Error> {
        let granted = request.perm.as_ref().ok_or(Error::PermissionNotGiven)?;
        if !is_valid(granted) {
            return Err(Error::InvalidAuthManagement);
        }
        let mut role = self
            .roles
            .get(&request.name)
            .cloned()
            .ok_or(Error::RoleNotFound)?;
        let place = |permission: &Permission| (permission.key.clone(), permission.range_end.clone());
        let found = role
            .key_permission
            .iter_mut()
            .find(|had| place(had) == place(granted));
        match found {
            Some(had) if had.perm_type == granted.perm_type => return Ok(()),
            Some(had) => had.perm_type = granted.perm_type,
            None => {
                role.key_permission.push(granted.clone());
                role.key_permission.sort_by_key(place);
            }
        }
        self.put_role(write, role);
        self.changed(write);
        Ok(())
    }

    fn revoke_permission(
        &mut self,
        write: &mut Write<'_>,
        request: &AuthRoleRevokePermissionRequest,
    ) -> Result<(), Error> {
        let mut role = self
            .roles
            .get(&request.role)
            .cloned()
            .ok_or(Error::RoleNotFound)?;
        let at = role
            .key_permission
            .iter()
            .position(|had| had.key == request.key && had.range_end == request.range_end)
            .ok_or(Error::PermissionNotGranted)?;
        role.key_permission.remove(at);
        self.put_role(write, role);
        self.changed(write);
        Ok(())
    }

    fn users_of(&self, role: &str) -> Vec<User> {
        let has_it = |user: &&User| user.roles.iter().any(|had| had == role);
        self.users.values().filter(has_it).cloned().collect()
    }

    fn put_user(&mut self, write: &mut Write<'_>, user: User) {
        let name = text(&user.name);
        write.set_record(keys::user(&name), Some(user.encode_to_vec().into()));
        self.users.insert(name.clone(), user);
        self.add_up(&name);
    }

    fn put_role(&mut self, write: &mut Write<'_>, role: Role) {
        let name = text(&role.name);
        write.set_record(keys::role(&name), Some(role.encode_to_vec().into()));
        self.roles.insert(name.clone(), role);
        for user in self.users_of(&name) {
            self.add_up(&text(&user.name));
        }
    }

    fn changed(&mut self, write: &mut Write<'_>) {
        self.revision += 1;
        self.put_status(write);
    }

    fn put_status(&self, write: &mut Write<'_>) {
        let status = AuthStatus {
            enabled: self.enabled,
            revision: self.revision,
        };
        write.set_record(keys::auth_status(), Some(status.encode_to_vec().into()));
    }
}

fn decoded<T: Message + Default>(
    records: Vec<(Bytes, Bytes)>,
    name: impl Fn(&T) -> &Bytes,
) -> BTreeMap<String, T> {
    let decoded = records.into_iter().filter_map(|(_, value)| T::decode(value).ok());
    decoded.map(|record| (text(name(&record)), record)).collect()
}

/// Names are strings in every request, and bytes in the records.
fn text(name: &Bytes) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn has_no_password(user: &User) -> bool {
    user.options.as_ref().is_some_and(|options| options.no_password)
}

/// A key is needed, and an end that is not before it.
fn is_valid(permission: &Permission) -> bool {
    let end = &permission.range_end[..];
    !permission.key.is_empty() && (end.is_empty() || end == [0] || end > &permission.key[..])
}

#[cfg(test)]
mod tests;
