-- The reporting warehouse: one row a customer, facts beside it.

create table dim_customer (
    customer_sk {id},
    customer_nk bigint not null unique,
    full_name   {text},
    birth_year  int,
    gender      char(1),
    postcode    {text},
    contactable boolean not null default false,
    frozen      boolean not null default false,
    usable      boolean not null default true
);

create table fact_invoice (
    invoice_sk  {id},
    customer_sk bigint not null references dim_customer (customer_sk),
    invoiced_on date not null,
    amount      numeric(10, 2) not null
);

create table fact_survey (
    survey_sk   {id},
    customer_sk bigint references dim_customer (customer_sk),
    question    {text} not null,
    answer      {text}
);

create index fact_invoice_person on fact_invoice (customer_sk);
create index fact_survey_person on fact_survey (customer_sk);
