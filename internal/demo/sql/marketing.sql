-- The marketing database: a copy of what campaigns need, filled by an ETL.

create table contact (
    contact_id       {id},
    crm_id           bigint not null unique,
    firstname        {text},
    lastname         {text},
    email            {text} unique,
    mobile           {text},
    city             {text},
    profile          {json},
    newsletter_optin boolean not null default false,
    offers_email     boolean not null default false,
    offers_sms       boolean not null default false,
    offers_phone     boolean not null default false,
    frozen           boolean not null default false,
    blocked          boolean not null default false
);

create table contact_note (
    note_id    {id},
    contact_id bigint not null references contact (contact_id),
    body       {text}
);

create table campaign_send (
    send_id    {id},
    contact_id bigint not null references contact (contact_id),
    campaign   {text} not null,
    address    {text}
);

create table do_not_contact (
    contact_id bigint not null references contact (contact_id),
    channel    {text} not null,
    reason     {text} not null,
    added_at   {time} not null,
    primary key (contact_id, channel)
);

create index contact_note_person on contact_note (contact_id);
create index campaign_send_person on campaign_send (contact_id);
