use std::sync::Mutex;

use postern_proto::names::TargetName;
use tokio::task::JoinHandle;

use super::super::{Ec2Settings, TargetLogin};
use super::*;
use crate::aws::AwsSettings;
use crate::aws::fake::{Call, FakeAws};

/// What the fake EC2 answers, to be changed while it runs.
type Script = Arc<Mutex<Box<dyn FnMut(&Call) -> (u16, String) + Send>>>;

fn script(answer: impl FnMut(&Call) -> (u16, String) + Send + 'static) -> Script {
    Arc::new(Mutex::new(Box::new(answer)))
}

async fn fake(script: &Script) -> FakeAws {
    let script = Arc::clone(script);
    FakeAws::start(move |call| (script.lock().unwrap())(&call)).await
}

fn page(instances: &[String], token: Option<&str>) -> (u16, String) {
    let token = token.map(|token| format!("<nextToken>{token}</nextToken>"));
    let body = format!(
        "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <requestId>r</requestId><reservationSet>{}</reservationSet>{}</DescribeInstancesResponse>",
        instances.concat(),
        token.unwrap_or_default()
    );
    (200, body)
}

fn instance(id: &str, address: &str, tags: &[(&str, &str)], more: &str) -> String {
    let tags = tags
        .iter()
        .map(|(key, value)| format!("<item><key>{key}</key><value>{value}</value></item>"));
    format!(
        "<item><reservationId>r-1</reservationId><ownerId>111122223333</ownerId><instancesSet><item>\
         <instanceId>{id}</instanceId><privateIpAddress>{address}</privateIpAddress>\
         <privateDnsName>ip-{}.internal</privateDnsName><vpcId>vpc-1</vpcId>\
         <placement><availabilityZone>eu-central-1a</availabilityZone></placement>\
         <tagSet>{}</tagSet>{more}</item></instancesSet></item>",
        address.replace('.', "-"),
        tags.collect::<String>()
    )
}

fn refused() -> (u16, String) {
    let body = "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>not \
                allowed&#x202e;</Message></Error></Errors><RequestID>r</RequestID></Response>";
    (403, body.to_owned())
}

fn ec2(aws: &AwsSettings, regions: &[&str]) -> Ec2Settings {
    Ec2Settings {
        regions: regions.iter().map(|region| (*region).to_owned()).collect(),
        aws: aws.clone(),
        login: TargetLogin::Certificate,
        refresh: Duration::from_secs(3600),
    }
}

async fn open(file: Option<&Path>, ec2: Option<Ec2Settings>) -> (Arc<Inventory>, Refresher) {
    let file = file.map(Path::to_owned);
    Inventory::open(InventorySettings { file, ec2 })
        .await
        .unwrap()
}

struct Running {
    inventory: Arc<Inventory>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn run((inventory, refresher): (Arc<Inventory>, Refresher)) -> Running {
    let stop = CancellationToken::new();
    let task = tokio::spawn(refresher.run(stop.clone()));
    Running {
        inventory,
        stop,
        task,
    }
}

impl Running {
    async fn until(&self, what: &str, test: impl FnMut(&Arc<Snapshot>) -> bool) {
        let mut changes = self.inventory.subscribe();
        let seen = tokio::time::timeout(Duration::from_secs(60), changes.wait_for(test)).await;
        seen.unwrap_or_else(|_| panic!("waited in vain until {what}"))
            .unwrap();
    }

    async fn trouble(&self) -> String {
        let mut trouble = self.inventory.trouble();
        let why = tokio::time::timeout(Duration::from_secs(60), trouble.wait_for(Option::is_some));
        let why = why.await.unwrap().unwrap();
        why.clone().unwrap().to_string()
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn find(inventory: &Inventory, name: &str) -> Arc<Target> {
    inventory
        .lookup(&name.parse::<TargetName>().unwrap())
        .unwrap()
}

#[tokio::test]
async fn all_pages_of_running_instances_become_targets() {
    let script = script(|call| {
        assert!(
            call.body.contains("Filter.1.Name=instance-state-name"),
            "{}",
            call.body
        );
        assert!(
            call.body.contains("Filter.1.Value.1=running"),
            "{}",
            call.body
        );
        if call.body.contains("NextToken=second") {
            let windows = "<platform>windows</platform>";
            let tags = [
                ("Name", "win-1"),
                ("postern:ssh-port", "2222"),
                ("postern:login", "instance-connect"),
            ];
            page(&[instance("i-0b", "10.0.0.2", &tags, windows)], None)
        } else {
            let tags = [("Name", "web-1"), ("env", "prod")];
            let unnamed = instance("i-0c", "10.0.0.3", &[("postern:ssh-port", "0")], "");
            page(
                &[instance("i-0a", "10.0.0.1", &tags, ""), unnamed],
                Some("second"),
            )
        }
    });
    let aws = fake(&script).await;
    let (inventory, _refresher) = open(None, Some(ec2(&aws.settings, &["eu-central-1"]))).await;
    assert_eq!(*inventory.trouble().borrow(), None);
    assert_eq!(
        *find(&inventory, "web-1"),
        Target {
            id: "i-0a".parse().unwrap(),
            name: "web-1".to_owned(),
            tags: [
                ("Name".to_owned(), "web-1".to_owned()),
                ("env".to_owned(), "prod".to_owned())
            ]
            .into(),
            account: Some("111122223333".to_owned()),
            region: Some("eu-central-1".to_owned()),
            vpc: Some("vpc-1".to_owned()),
            zone: Some("eu-central-1a".to_owned()),
            platform: "linux".to_owned(),
            address: "10.0.0.1".to_owned(),
            aliases: vec!["ip-10-0-0-1.internal".to_owned()],
            ssh_port: 22,
            login: TargetLogin::Certificate,
        }
    );
    let windows = find(&inventory, "win-1");
    assert_eq!(
        (windows.platform.as_str(), windows.ssh_port),
        ("windows", 2222)
    );
    assert_eq!(windows.login, TargetLogin::InstanceConnect);
    let unnamed = find(&inventory, "10.0.0.3");
    assert_eq!((unnamed.name.as_str(), unnamed.ssh_port), ("i-0c", 22));
}

#[tokio::test]
async fn names_from_outside_are_cleaned_of_what_a_terminal_obeys() {
    let script = script(|_| {
        let tags = [("Name", "web&#x9;&#x202e;1\u{85}")];
        page(&[instance("i-0a", "10.0.0.1", &tags, "")], None)
    });
    let aws = fake(&script).await;
    let (inventory, _refresher) = open(None, Some(ec2(&aws.settings, &["eu-central-1"]))).await;
    let target = inventory.get(&"i-0a".parse().unwrap()).unwrap();
    assert_eq!(target.name, "web\u{fffd}\u{fffd}1\u{fffd}");
}

#[tokio::test]
async fn an_endpoint_under_another_ca_is_not_believed() {
    let script = script(|_| page(&[instance("i-0a", "10.0.0.1", &[], "")], None));
    let (aws, other) = (fake(&script).await, fake(&script).await);
    let settings = AwsSettings {
        ca_bundle: other.settings.ca_bundle.clone(),
        ..aws.settings.clone()
    };
    let (inventory, _refresher) = open(None, Some(ec2(&settings, &["eu-central-1"]))).await;
    assert_eq!(inventory.snapshot().targets().len(), 0);
    let why = inventory.trouble().borrow().clone().unwrap();
    assert!(
        why.contains("inventory ec2 eu-central-1: listing instances failed"),
        "{why}"
    );
    assert!(why.contains("certificate"), "{why}");
    assert_eq!(inventory.snapshot().stale()[0].since, None);
}

#[tokio::test]
async fn settings_that_cannot_work_do_not_open() {
    let clear = AwsSettings {
        endpoint_url: Some("http://127.0.0.1:1".to_owned()),
        ..AwsSettings::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    let bundle = |path: &Path| AwsSettings {
        ca_bundle: Some(path.to_owned()),
        ..AwsSettings::default()
    };
    for (aws, words) in [
        (clear, "is not an https URL"),
        (bundle(&empty), "holds no certificate"),
        (bundle(&folder.path().join("absent.pem")), "cannot read"),
    ] {
        let settings = InventorySettings {
            file: None,
            ec2: Some(ec2(&aws, &["eu-central-1"])),
        };
        let error = Inventory::open(settings).await.err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_failing_region_keeps_its_last_answer_and_is_reported_until_it_answers() {
    let script = script(|call| {
        let id = if call.authorization.contains("/eu-west-1/") {
            "i-0b"
        } else {
            "i-0a"
        };
        page(&[instance(id, "10.0.0.1", &[], "")], None)
    });
    let aws = fake(&script).await;
    let regions = ec2(&aws.settings, &["eu-central-1", "eu-west-1"]);
    let running = run(open(None, Some(regions)).await);
    assert_eq!(running.inventory.snapshot().targets().len(), 2);

    *script.lock().unwrap() = Box::new(|call| {
        if call.authorization.contains("/eu-west-1/") {
            refused()
        } else {
            page(&[instance("i-0c", "10.0.0.3", &[], "")], None)
        }
    });
    running.inventory.refresh();
    running
        .until("the good region is fresh", |now| {
            now.get(&"i-0c".parse().unwrap()).is_some()
        })
        .await;
    let now = running.inventory.snapshot();
    assert!(
        now.get(&"i-0b".parse().unwrap()).is_some(),
        "the last answer is kept"
    );
    assert!(now.get(&"i-0a".parse().unwrap()).is_none());
    assert_eq!(now.stale()[0].source, "ec2 eu-west-1");
    assert!(now.stale()[0].since.is_some());
    let why = running.trouble().await;
    assert!(
        why.contains("not allowed") && !why.contains('\u{202e}'),
        "{why}"
    );

    *script.lock().unwrap() = Box::new(|_| page(&[], None));
    running.inventory.refresh();
    running
        .until("all is well", |now| {
            now.targets().is_empty() && now.stale().is_empty()
        })
        .await;
    running.end().await;
}

#[tokio::test]
async fn a_changed_file_is_read_and_a_broken_one_keeps_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inventory.toml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write("[[target]]\nname = \"web-1\"\naddress = \"10.0.0.1\"\n");
    let running = run(open(Some(&path), None).await);
    assert_eq!(find(&running.inventory, "web-1").address, "10.0.0.1");

    write("[[target]]\nname = \"web-1\"\naddress = \"10.0.0.9\"\n");
    running
        .until("the new address is there", |now| {
            now.targets()[0].address == "10.0.0.9"
        })
        .await;

    write("[[target]]\nname = \"web-1\"\nadress = \"10.0.0.1\"\n");
    let why = running.trouble().await;
    assert!(
        why.contains("line 3: there is no key `adress` here"),
        "{why}"
    );
    assert_eq!(find(&running.inventory, "web-1").address, "10.0.0.9");

    write("");
    running
        .until("it is mended", |now| {
            now.targets().is_empty() && now.stale().is_empty()
        })
        .await;
    running.end().await;
}

#[tokio::test]
async fn a_broken_file_does_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inventory.toml");
    for text in [None, Some("[[target]")] {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let settings = InventorySettings {
            file: Some(path.clone()),
            ec2: None,
        };
        assert!(matches!(
            Inventory::open(settings).await,
            Err(InventoryError::File(_))
        ));
    }
}

#[tokio::test]
async fn the_file_wins_over_ec2() {
    let script = script(|_| {
        page(
            &[instance("i-0a", "10.0.0.1", &[("Name", "web-1")], "")],
            None,
        )
    });
    let aws = fake(&script).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inventory.toml");
    let text = "[[target]]\nname = \"web-1\"\nid = \"i-0a\"\naddress = \"10.9.9.9\"\n";
    std::fs::write(&path, text).unwrap();
    let (inventory, _refresher) =
        open(Some(&path), Some(ec2(&aws.settings, &["eu-central-1"]))).await;
    assert_eq!(find(&inventory, "web-1").address, "10.9.9.9");
    assert_eq!(inventory.snapshot().targets().len(), 1);
}
