//! Who runs the server, and how each setting is changed there.

use serde::Serialize;

/// Who runs the server. Told by settings, roles and host name; never by its answers alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// Amazon RDS for PostgreSQL.
    Rds,
    /// Amazon Aurora PostgreSQL.
    Aurora,
    /// Google Cloud SQL.
    CloudSql,
    /// Google AlloyDB.
    AlloyDb,
    /// Azure Database for PostgreSQL, flexible server.
    Azure,
    /// Supabase.
    Supabase,
    /// Neon.
    Neon,
    /// Aiven for PostgreSQL.
    Aiven,
    /// Crunchy Bridge.
    Crunchy,
    /// Somebody's own server, or one we do not know.
    SelfHosted,
}

/// Something an operator changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// `wal_level = logical`.
    WalLevel,
    /// A server setting and a value for it; needs a restart or not.
    Setting {
        /// Its name.
        name: &'a str,
        /// A value that helps.
        value: &'a str,
        /// Only read at start.
        restart: bool,
    },
    /// The right to replicate, for a quoted role.
    Replication {
        /// The role.
        role: &'a str,
    },
}

impl Provider {
    /// Recognises the provider by the first parts of setting names, by roles, and by the host name.
    pub fn recognise(settings: &[String], roles: &[String], host: &str) -> Provider {
        let setting = |prefix: &str| settings.iter().any(|name| name.starts_with(prefix));
        let role = |name: &str| roles.iter().any(|role| role == name);
        let ends = |suffix: &str| host.ends_with(suffix);
        match () {
            () if setting("aurora") || ends(".rds.amazonaws.com") && host.contains(".cluster-") => Provider::Aurora,
            () if setting("rds.") || role("rds_superuser") || ends(".rds.amazonaws.com") => Provider::Rds,
            () if setting("alloydb.") => Provider::AlloyDb,
            () if setting("cloudsql.") || role("cloudsqlsuperuser") => Provider::CloudSql,
            () if setting("azure.") || role("azure_pg_admin") || ends(".postgres.database.azure.com") => {
                Provider::Azure
            }
            () if setting("neon.") || role("neon_superuser") || ends(".neon.tech") => Provider::Neon,
            () if setting("supautils.") || role("supabase_admin") || ends(".supabase.co") => Provider::Supabase,
            () if role("avnadmin") || ends(".aivencloud.com") => Provider::Aiven,
            () if role("crunchy_superuser") || ends(".postgresbridge.com") => Provider::Crunchy,
            () => Provider::SelfHosted,
        }
    }

    /// How it is called.
    pub fn name(self) -> &'static str {
        match self {
            Provider::Rds => "Amazon RDS",
            Provider::Aurora => "Amazon Aurora",
            Provider::CloudSql => "Google Cloud SQL",
            Provider::AlloyDb => "Google AlloyDB",
            Provider::Azure => "Azure Database for PostgreSQL",
            Provider::Supabase => "Supabase",
            Provider::Neon => "Neon",
            Provider::Aiven => "Aiven",
            Provider::Crunchy => "Crunchy Bridge",
            Provider::SelfHosted => "self-hosted",
        }
    }

    /// How a change is made there: SQL to paste where SQL can do it.
    pub fn how(self, change: Change<'_>) -> String {
        match change {
            Change::WalLevel => self.wal_level(),
            Change::Setting { name, value, restart } => self.setting(name, value, restart),
            Change::Replication { role } => self.replication(role),
        }
    }

    fn wal_level(self) -> String {
        match self {
            Provider::Rds => {
                "in the instance's own parameter group: rds.logical_replication = 1, then reboot the instance".into()
            }
            Provider::Aurora => {
                "in the cluster's own parameter group: rds.logical_replication = 1, then reboot the writer instance"
                    .into()
            }
            Provider::CloudSql => {
                "gcloud sql instances patch INSTANCE --database-flags=cloudsql.logical_decoding=on  # restarts it; \
                                   the list replaces all flags, so name the others too"
                    .into()
            }
            Provider::AlloyDb => "set the flag alloydb.logical_decoding=on; the instance restarts".into(),
            Provider::Neon => {
                "project settings, Logical Replication, Enable; it restarts computes and cannot be undone".into()
            }
            Provider::Supabase | Provider::Aiven => {
                "logical is this provider's default; ask their support what changed it".into()
            }
            other => other.setting("wal_level", "logical", true),
        }
    }

    fn setting(self, name: &str, value: &str, restart: bool) -> String {
        let then = if restart { ", then restart" } else { "" };
        match self {
            Provider::SelfHosted => {
                let then = if restart { "-- then restart the server" } else { "SELECT pg_reload_conf();" };
                format!("ALTER SYSTEM SET {name} = '{value}'; {then}")
            }
            Provider::Rds => format!("in the instance's parameter group: {name} = {value}{then}"),
            Provider::Aurora => format!("in the cluster's parameter group: {name} = {value}{then}"),
            Provider::CloudSql => format!(
                "gcloud sql instances patch INSTANCE --database-flags={name}={value}  # name the other flags too"
            ),
            Provider::AlloyDb => format!(
                "gcloud alloydb instances update INSTANCE --database-flags={name}={value}  # name the other flags too"
            ),
            Provider::Azure => format!(
                "az postgres flexible-server parameter set --name {name} --value {value} -g GROUP -s SERVER{then}"
            ),
            Provider::Supabase => format!("supabase --experimental postgres-config update --config {name}={value}"),
            Provider::Neon => format!("{name} is Neon's to set; ask their support for {value}"),
            Provider::Aiven => format!("avn service update SERVICE -c pg.{name}={value}"),
            Provider::Crunchy => format!("cb config-param set --cluster CLUSTER {name}={value}"),
        }
    }

    fn replication(self, role: &str) -> String {
        match self {
            Provider::Rds | Provider::Aurora => format!("GRANT rds_replication TO {role};"),
            Provider::Neon => {
                "use a role made in the console or by the API: roles made with SQL cannot get REPLICATION on Neon"
                    .into()
            }
            Provider::Supabase => {
                format!("ALTER ROLE {role} REPLICATION;  -- before version 17 only the role postgres has it")
            }
            _ => format!("ALTER ROLE {role} REPLICATION;"),
        }
    }

    /// How slots survive a failover there.
    pub fn failover(self, version: i32) -> String {
        let new = version >= 170_000;
        let ours = "slots of ours are made with failover = true";
        match self {
            Provider::SelfHosted if new => format!(
                "on the standby: sync_replication_slots = on, hot_standby_feedback = on, a dbname in primary_conninfo; {ours}"
            ),
            Provider::SelfHosted => {
                "version 17 can keep slots in step; before, the extension pg_failover_slots".into()
            }
            Provider::Rds if new => format!(
                "in the parameter group: rds.logical_slot_sync_dbname and synchronized_standby_slots, for Multi-AZ clusters; {ours}"
            ),
            Provider::Rds => "a Multi-AZ instance keeps slots, its storage being one; a read replica that is promoted has none".into(),
            Provider::Aurora => "nothing to do inside the cluster: its storage is one; do not switch blue/green over with slots".into(),
            Provider::CloudSql | Provider::AlloyDb => {
                "nothing to do for high availability: the disk is the same; a read replica that is promoted has no slots".into()
            }
            Provider::Azure if new => format!(
                "server parameters sync_replication_slots = on and hot_standby_feedback = on; {ours}"
            ),
            Provider::Azure => {
                "add pg_failover_slots to shared_preload_libraries and hot_standby_feedback = on, or upgrade to version 17".into()
            }
            Provider::Supabase => "read replicas are not promoted there; after a restore everything is copied again".into(),
            Provider::Neon => "computes share their storage, slots survive; after a branch restore everything is copied again".into(),
            Provider::Aiven => "slots are made again on the new primary by the provider; the service compares positions and goes on or copies again".into(),
            Provider::Crunchy if new => format!("ask support for sync_replication_slots = on at the standby; {ours}"),
            Provider::Crunchy => "version 17 can keep slots in step; before, everything is copied again after a failover".into(),
        }
    }

    /// How `postgres_fdw` is had there.
    pub fn fdw(self) -> &'static str {
        match self {
            Provider::SelfHosted => "install the server's contrib package",
            Provider::Azure => {
                "allow it: az postgres flexible-server parameter set --name azure.extensions --value POSTGRES_FDW -g GROUP -s SERVER"
            }
            _ => {
                "this provider offers it in every supported version: upgrade the server, or ask support why it is missing"
            }
        }
    }

    /// How to reach the server itself there, without a pooler.
    pub fn direct(self) -> &'static str {
        match self {
            Provider::Supabase => "use db.PROJECT.supabase.co, port 5432",
            Provider::Neon => "use the host name without -pooler",
            Provider::Azure => "use port 5432 instead of 6432",
            Provider::Rds | Provider::Aurora => "use the instance's or the cluster's endpoint instead of RDS Proxy's",
            Provider::CloudSql | Provider::AlloyDb => {
                "use the instance's address, or the Auth Proxy, instead of managed pooling's port"
            }
            Provider::Aiven => "use the service URI instead of the connection pool's",
            Provider::Crunchy => "use port 5432 instead of 5431",
            Provider::SelfHosted => "name the server's own host and port in source.dsn",
        }
    }

    /// What to do with a server that only has IPv6.
    pub fn ipv4(self) -> &'static str {
        match self {
            Provider::Supabase => "run the service where there is IPv6, or buy the project's IPv4 add-on",
            Provider::SelfHosted => "run the service where there is IPv6, or give the server an IPv4 address",
            _ => "run the service where there is IPv6, or choose a network with IPv4 (dual stack) for the server",
        }
    }

    /// What an operator should know of slots there, beyond what can be measured.
    pub fn slot_note(self) -> Option<&'static str> {
        Some(match self {
            Provider::Neon => {
                "Neon drops a slot that was inactive for about 40 hours, and all slots when a branch is restored; a connected consumer keeps the compute awake"
            }
            Provider::Azure => {
                "Azure drops unused slots itself when storage is nearly full; before version 17 slots do not survive a failover"
            }
            Provider::Aurora => "Aurora keeps slots in a failover inside the cluster; blue/green deployments drop them",
            Provider::Rds => {
                "slots survive a Multi-AZ instance failover; they block major upgrades until they are dropped"
            }
            Provider::Aiven => {
                "Aiven makes slots again on the new primary, possibly a few seconds back; a one-node service loses them"
            }
            Provider::Supabase => {
                "five slots and max_slot_wal_keep_size = 4 GB by default; the pooler cannot replicate, use the direct host"
            }
            Provider::CloudSql | Provider::AlloyDb => {
                "connect to the primary's own address; slots survive its failover, the disk being the same"
            }
            Provider::Crunchy | Provider::SelfHosted => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_recognised_by_what_only_they_have() {
        let some = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let cases: &[(&[&str], &[&str], &str, Provider)] = &[
            (&["rds.extensions"], &[], "10.0.0.1", Provider::Rds),
            (&[], &[], "x.abc.eu-west-1.rds.amazonaws.com", Provider::Rds),
            (&["rds.extensions", "aurora_compute_plan_id"], &[], "h", Provider::Aurora),
            (&[], &[], "x.cluster-abc.eu-west-1.rds.amazonaws.com", Provider::Aurora),
            (&["cloudsql.logical_decoding"], &[], "h", Provider::CloudSql),
            (&["alloydb.x", "cloudsql.y"], &[], "h", Provider::AlloyDb),
            (&["azure.extensions"], &[], "h", Provider::Azure),
            (&[], &["supabase_admin"], "h", Provider::Supabase),
            (&["neon.tenant_id"], &[], "h", Provider::Neon),
            (&[], &["avnadmin"], "h", Provider::Aiven),
            (&[], &[], "p.abc.db.postgresbridge.com", Provider::Crunchy),
            (&[], &["postgres"], "localhost", Provider::SelfHosted),
        ];
        for (settings, roles, host, expected) in cases {
            assert_eq!(
                Provider::recognise(&some(settings), &some(roles), host),
                *expected,
                "{settings:?} {roles:?} {host}"
            );
        }
    }
}
