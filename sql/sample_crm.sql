-- The sample CRM of `postrider demo`: small and believable, with nothing of Postrider in it.
CREATE SCHEMA IF NOT EXISTS crm;

CREATE TABLE IF NOT EXISTS crm.companies (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name       text NOT NULL,
  industry   text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.contacts (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  company_id bigint NOT NULL REFERENCES crm.companies ON DELETE CASCADE,
  first_name text NOT NULL,
  last_name  text NOT NULL,
  email      text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.deals (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  company_id bigint NOT NULL REFERENCES crm.companies ON DELETE CASCADE,
  title      text NOT NULL,
  amount     numeric(12, 2) NOT NULL,
  stage      text NOT NULL DEFAULT 'lead' CHECK (stage IN ('lead', 'proposal', 'negotiation', 'won', 'lost')),
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.activities (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  deal_id    bigint NOT NULL REFERENCES crm.deals ON DELETE CASCADE,
  kind       text NOT NULL CHECK (kind IN ('call', 'email', 'meeting')),
  subject    text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
