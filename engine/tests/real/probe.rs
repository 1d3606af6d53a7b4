//! Probes of a real server.

use anyhow::Result;
use lastgood_engine::SourceSettings;
use lastgood_engine::probe::{Severity, probe, role_sql};
use lastgood_integration::TestDatabase;

use crate::majors;

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_database_has_no_blocker() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        database
            .execute("CREATE TABLE t(id int PRIMARY KEY); CREATE TABLE bare(a int)")
            .await?;
        let report = probe(&database.url().parse()?, &SourceSettings::default()).await;
        println!("{report:#?}");
        assert!(!report.is_blocked());
        assert!(
            report
                .findings
                .iter()
                .any(|finding| finding.code == "no_identity"
                    && finding.severity == Severity::Warning
                    && finding.object == "public.bare")
        );
        let sql = role_sql("backup", report.server.as_ref().unwrap());
        assert!(sql.contains("GRANT SELECT ON ALL TABLES IN SCHEMA \"public\""));
    }
    Ok(())
}
