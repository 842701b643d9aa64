//! Examines what is being published: its generation, whether its users receive it, and the
//! publisher's clock.

use std::time::Duration;

use super::{
    exchange::Exchange,
    grants::topic_permissions,
    listening::{Ear, Heard},
    report::{Report, Section, counted},
    rights::Rights,
    trial::{Trial, Tried},
};
use crate::{
    broker::rabbitmq::{ACCESS_REFUSED, LinkError, NOT_FOUND, Scope, SideConnection},
    broker::survey::{Survey, Template},
    config::{BindingKeys, RabbitMqConfig},
    user::User,
};

/// The most shapes of unknown keys that are shown.
const MAX_SHAPES: usize = 5;

/// Listens, and reports on exchange, keys and clock. `known` is a user whose updates may
/// be listened to even where others' may not.
pub(super) async fn examine(
    mut side: SideConnection,
    config: &RabbitMqConfig,
    rights: &Rights,
    known: Option<User>,
    listen: Duration,
    report: &mut Report,
) {
    let known: Vec<User> = known.into_iter().collect();
    match hear(&mut side, config, rights, &known, listen, report).await {
        Ok((scope, heard)) => {
            told_exchange(config, rights, &heard, report);
            report.begin(Section::Updates);
            match scope {
                Scope::Nothing(refusal) => heard_nothing(&refusal, report),
                scope => tell(config, rights, listen, &scope, &heard, report),
            }
        }
        Err(error) => {
            let advice = "RabbitMQ's own log says more";
            report.problem("listening", format!("failed: {error}"), advice);
            skip("listening failed", report);
        }
    }
    side.close().await;
}

async fn hear<'r>(
    side: &mut SideConnection,
    config: &RabbitMqConfig,
    rights: &'r Rights,
    known: &[User],
    listen: Duration,
    report: &Report,
) -> Result<(Scope, Heard<'r>), LinkError> {
    let ear = Ear::open(side, config, known).await?;
    let with = match &ear.scope {
        Scope::Everything => Some("#".to_owned()),
        Scope::Some(keys) => Some(keys.join(",")),
        Scope::Nothing(_) => None,
    };
    if let Some(with) = with {
        report.announce(&format!(
            "listening to {} for {} (temporary queues, bound with {with})",
            config.exchange,
            humantime::format_duration(listen)
        ));
    }
    let heard = ear.listen(side, config, rights, listen);
    let heard = heard.await?;
    Ok((ear.scope, heard))
}

/// Reports that nothing was tried.
pub(super) fn skip(why: &str, report: &mut Report) {
    report.begin(Section::Updates);
    skip_all(&["keys", "bindings", "clock"], why, report);
}

fn skip_all(checks: &[&'static str], why: &str, report: &mut Report) {
    for check in checks {
        report.unknown(check, format!("not tried: {why}"));
    }
}

/// Reports why listening was not possible.
fn heard_nothing(refusal: &LinkError, report: &mut Report) {
    let why = match refusal {
        LinkError::Closed(close) if close.text.contains("access to topic") => {
            let finding =
                "the topic permissions keep this user from listening to everything, as they should";
            report.unclear("keys", finding, AS_CHAT3);
            let why = "nothing was listened to";
            return skip_all(&["bindings", "clock"], why, report);
        }
        LinkError::Closed(close) if close.code == ACCESS_REFUSED => {
            "the rights above are missing".to_owned()
        }
        LinkError::Closed(close) if close.code == NOT_FOUND => "there is no exchange".to_owned(),
        error => format!("nothing was listened to: {error}"),
    };
    skip_all(&["keys", "bindings", "clock"], &why, report);
}

const AS_CHAT3: &str = "to check keys and clock, run doctor once with RABBITMQ_URL of Chat3's own user, or with the token of a user who gets updates meanwhile";

/// Reports what the behaviour of the exchange shows where RabbitMQ did not tell its type.
fn told_exchange(config: &RabbitMqConfig, rights: &Rights, heard: &Heard, report: &mut Report) {
    let name = &config.exchange;
    if heard.for_nobody > 0 && !matches!(rights.exchange, Exchange::OtherType(_)) {
        return report.problem(
            "exchange",
            format!("{name} is no topic exchange: updates came for a user who does not exist"),
            "is RABBITMQ_UPDATES_EXCHANGE the right one? rabbitmqctl list_exchanges name type must say topic",
        );
    }
    if rights.exchange != Exchange::NotPermitted || rights.probe.is_none() {
        return;
    }
    match heard.updates == 0 {
        false => report.ok(
            "exchange",
            format!("{name} exists, and behaves as a topic exchange"),
        ),
        true => report.unclear(
            "exchange",
            format!("{name} exists; its type is told only to those who may declare it"),
            "rabbitmqctl list_exchanges name type must say topic",
        ),
    }
}

fn tell(
    config: &RabbitMqConfig,
    rights: &Rights,
    listen: Duration,
    scope: &Scope,
    heard: &Heard,
    report: &mut Report,
) {
    let listened = humantime::format_duration(listen);
    // Nothing is known of updates that may not be listened to.
    let limit = match scope {
        Scope::Some(keys) => format!(
            "; the topic permissions let only {} be heard",
            keys.join(",")
        ),
        _ => String::new(),
    };
    if heard.updates == 0 {
        let finding = format!(
            "nothing was published to {} within {listened}{limit}",
            config.exchange
        );
        let advice = match (&rights.exchange, scope) {
            (Exchange::OtherType(_), _) => "mend the exchange first",
            (_, Scope::Some(_)) => AS_CHAT3,
            _ => {
                "send a message in the chat while this listens, or longer: --listen 1m; if nothing comes then, Chat3's Update Worker does not publish here"
            }
        };
        match scope {
            Scope::Some(_) => report.unclear("keys", finding, advice),
            _ => report.warning("keys", finding, advice),
        }
        return skip_all(&["bindings", "clock"], "nothing was heard", report);
    }
    let survey = &heard.survey;
    let updates = counted(survey.updates(), "update");
    let users = counted(survey.users(), "user");
    let finding = format!("{updates} for {users} within {listened}{limit}");
    report.ok("listening", finding);
    keys(survey, report);
    bindings(&rights.permitted, survey, report);
    let trial = heard.trial.as_ref().map_or(&[][..], Trial::templates);
    for (index, template) in survey.templates().iter().enumerate() {
        of_template(config, template, survey.updates(), trial.get(index), report);
    }
    heard.clock.tell(report);
}

/// Reports the generations of the keys.
fn keys(survey: &Survey, report: &mut Report) {
    for (generation, count) in survey.generations() {
        let (since, form) = (generation.since(), generation.form());
        report.ok(
            "keys",
            format!("{count} × {form}, as of Chat3 since {since}"),
        );
    }
    let shapes: Vec<_> = survey
        .unknown()
        .take(MAX_SHAPES)
        .map(|(shape, count)| format!("{count} × {shape}"))
        .collect();
    if !shapes.is_empty() {
        report.warning(
            "keys",
            format!("keys of no known generation of Chat3: {}", shapes.join(", ")),
            "something else publishes here, or a newer Chat3: compare its keys with RABBITMQ_BINDING_KEYS by hand",
        );
    }
    if survey.foreign() > 0 {
        report.warning(
            "keys",
            format!(
                "{} with a key that is not for the user in the body: the gateway drops them",
                counted(survey.foreign(), "update")
            ),
            "something else than Chat3 publishes here, or what changes its updates on the way",
        );
    }
    if survey.unreadable() > 0 {
        report.warning(
            "keys",
            format!(
                "{} that the gateway rejects: no JSON object with an acceptable userId",
                counted(survey.unreadable(), "message")
            ),
            "something else than Chat3 publishes here; updates_rejected_total of /metrics says what is wrong with them",
        );
    }
}

/// Reports whether users receive their updates.
fn bindings(permitted: &BindingKeys, survey: &Survey, report: &mut Report) {
    let (updates, missed) = (survey.updates(), survey.missed());
    if updates == 0 {
        return report.unknown(
            "bindings",
            "cannot be told: no update is of a user in its key",
        );
    }
    let configured = match survey.is_default() {
        true => format!("the default, {permitted}, "),
        false => format!("{permitted} "),
    };
    if missed == 0 {
        let finding = format!("{configured}matches all of them");
        if survey.missed_without_tenant() > 0 {
            let finding = format!(
                "{} of {updates} updates do not reach users whose tokens have no tenant: \
                 the tenant's id has dots",
                survey.missed_without_tenant()
            );
            let advice =
                "if there are such tokens, put the tenant into them, or set JWT_DEFAULT_TENANT_ID";
            report.unclear("tenants", finding, advice);
        }
        return match survey.enough() {
            Some(enough) => report.recommend(
                "bindings",
                finding,
                format!(
                    "where thousands are online, RABBITMQ_BINDING_KEYS='{enough}' costs RabbitMQ less (docs/SCALING.md), \
                     as long as Chat3 publishes nothing else than now"
                ),
            ),
            None => report.ok("bindings", finding),
        };
    }
    let finding = match missed == updates {
        true => format!("{configured}matches none of them: nobody gets an update"),
        false => format!("{configured}misses {missed} of {updates} updates"),
    };
    match survey.advice() {
        Some(advice) => report.problem("bindings", finding, advice),
        None => report.warning(
            "bindings",
            finding,
            "what is missed is of no known generation of Chat3: if users need it, add a template for its keys",
        ),
    }
}

/// Reports how many updates one template matches.
fn of_template(
    config: &RabbitMqConfig,
    template: &Template,
    updates: usize,
    tried: Option<&Tried>,
    report: &mut Report,
) {
    let text = &template.text;
    let gets = match template.gets {
        0 => "none".to_owned(),
        gets => format!("{gets} of {}", counted(updates, "update")),
    };
    let finding = format!("{text} gets {gets}");
    match tried {
        Some(tried) if tried.refused && template.gets > 0 => report.problem(
            "templates",
            format!("{finding}, but RabbitMQ refuses to bind so"),
            topic_permissions(config),
        ),
        Some(Tried { came, expected, .. }) if came < expected => report.problem(
            "templates",
            format!("{finding} by its words, but RabbitMQ routed only {came} of {expected}"),
            "is the exchange a topic exchange? rabbitmqctl list_exchanges name type; and RabbitMQ's log",
        ),
        Some(Tried { expected, .. }) if *expected > 0 => report.ok(
            "templates",
            format!("{finding}; RabbitMQ routed {expected} of {expected} to a queue bound so"),
        ),
        _ if template.gets > 0 => report.ok("templates", finding),
        // The line about the bindings says whether that is bad.
        _ => report.ok("templates", format!("{finding}: no key is of its form")),
    }
}
