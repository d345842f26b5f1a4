-- The CRM of a magazine publisher, as its application sees it. Nothing here knows of Lethe. What databases write differently
-- stands in braces.

create table customer (
    customer_id      {id},
    last_name        {text},
    first_name       {text},
    national_id      {text},
    birth_date       date,
    gender           char(1),
    qualifier_1      {text},
    qualifier_2      {text},
    status           char(1) not null default 'A',      -- A active, I inactive, E erased
    blocked          boolean not null default false,
    ok_for_promo     boolean not null default true,
    no_marketing     boolean not null default false,    -- objection, Art. 21
    restricted_until date,                              -- restriction, Art. 18
    last_contact     {time} not null default {now}
);

create table customer_address (
    address_id  {id},
    customer_id bigint not null references customer (customer_id),
    line1       {text} not null,
    postal_code {text} not null,
    city        {text} not null
);

create table customer_email (
    email_id    {id},
    customer_id bigint not null references customer (customer_id),
    email       {text} not null
);

create table customer_phone (
    phone_id    {id},
    customer_id bigint not null references customer (customer_id),
    number      {text} not null,
    country     char(2) not null default 'FR'
);

create table email_history (
    history_id  {id},
    customer_id bigint not null references customer (customer_id),
    email       {text} not null,
    until       {time} not null
);

create table address_history (
    history_id  {id},
    customer_id bigint not null references customer (customer_id),
    line1       {text} not null,
    postal_code {text} not null,
    city        {text} not null
);

create table auth_record (
    auth_id     {id},
    customer_id bigint not null references customer (customer_id),
    login       {text} not null,
    secret_hash {text} not null
);

create table epayment (
    epayment_id {id},
    customer_id bigint not null references customer (customer_id),
    token       {text},
    holder_name {text},
    iban        {text},
    active      boolean not null default true
);

create table questionnaire_answer (
    answer_id   {id},
    customer_id bigint not null references customer (customer_id),
    question    {text} not null,
    answer_text {text}
);

create table vendor (
    vendor_id   {id},
    customer_id bigint references customer (customer_id),
    name        {text},
    contact     {text},
    email       {text}
);

create table customer_note (
    note_id     {id},
    customer_id bigint not null references customer (customer_id),
    note_code   {text} not null,
    noted_at    {time} not null default {now},
    body        {text}
);

create table consent (
    consent_id   {id},
    customer_id  bigint not null references customer (customer_id),
    purpose_code {text} not null,     -- NL newsletter, OFF offers
    channel_code {text} not null,     -- E e-mail, S SMS, T telephone
    contact_id   bigint not null,   -- customer_email or customer_phone, by channel
    status       char(1) not null,  -- Y given, N withdrawn, R refused
    legal_basis  char(1),           -- C consent
    document_id  {text},
    valid_until  date,
    unique (customer_id, purpose_code, channel_code, contact_id)
);
create table order_service (
    service_id  {id},
    customer_id bigint not null references customer (customer_id),
    magazine    {text} not null,
    status      {text} not null default 'ACTIVE'
);

create table invoice (
    invoice_id  {id},
    customer_id bigint not null references customer (customer_id),
    invoiced_on date not null,
    amount      numeric(10, 2) not null,
    balance_due numeric(10, 2) not null default 0
);

create index customer_address_person on customer_address (customer_id);
create index customer_email_person on customer_email (customer_id);
create index customer_phone_person on customer_phone (customer_id);
create index email_history_person on email_history (customer_id);
create index address_history_person on address_history (customer_id);
create index auth_record_person on auth_record (customer_id);
create index epayment_person on epayment (customer_id);
create index questionnaire_answer_person on questionnaire_answer (customer_id);
create index vendor_person on vendor (customer_id);
create index customer_note_person on customer_note (customer_id);
create index order_service_person on order_service (customer_id);
create index invoice_person on invoice (customer_id);

-- The erasure as the CRM's back office runs it. A publisher's CRM does it from several screens, in several transactions:
-- the caller may commit between the two procedures.
create procedure gdpr_erase_identity(id bigint) {begin}
    update customer
       set last_name = 'EFFACE', first_name = null, national_id = null, birth_date = null, gender = null,
           qualifier_1 = null, qualifier_2 = null, status = 'E', blocked = true, ok_for_promo = false
     where customer_id = id;
    update questionnaire_answer set answer_text = null where customer_id = id;
    delete from customer_address where customer_id = id;
    delete from customer_email where customer_id = id;
    delete from customer_phone where customer_id = id;
{end};

create procedure gdpr_erase_traces(id bigint) {begin}
    delete from email_history where customer_id = id;
    delete from address_history where customer_id = id;
    delete from auth_record where customer_id = id;
    update epayment set active = false, token = null, holder_name = null, iban = null where customer_id = id;
    update vendor set name = 'EFFACE', contact = null, email = null where customer_id = id;
    insert into customer_note (customer_id, note_code) values (id, 'GDPR_ERASURE');
{end};
