-- A sample of a CRM like Heffl: leads become deals, deals become invoices; nothing of Postrider in it.
CREATE SCHEMA IF NOT EXISTS crm;
CREATE SEQUENCE IF NOT EXISTS crm.ids START 1001;

CREATE TABLE IF NOT EXISTS crm.users (id integer PRIMARY KEY, name text NOT NULL);
CREATE TABLE IF NOT EXISTS crm.stages (id integer PRIMARY KEY, pipeline_id integer, name text NOT NULL);

CREATE TABLE IF NOT EXISTS crm.leads (
  id               text PRIMARY KEY DEFAULT 'ld_' || nextval('crm.ids'),
  name             text NOT NULL,
  mobile           text,
  email            text,
  secondary_mobile text,
  title            text NOT NULL,
  value            numeric,
  source           text,
  created_at       timestamptz NOT NULL DEFAULT now(),
  website          text,
  archived         boolean NOT NULL DEFAULT false,
  stage_id         integer NOT NULL DEFAULT 1 REFERENCES crm.stages,
  custom_fields    json NOT NULL DEFAULT '{}',
  owner_id         integer NOT NULL REFERENCES crm.users
);

CREATE TABLE IF NOT EXISTS crm.clients (
  id            text PRIMARY KEY DEFAULT 'cl_' || nextval('crm.ids'),
  name          text NOT NULL,
  number        text NOT NULL DEFAULT 'CL-' || nextval('crm.ids'),
  tax_number    text,
  website       text,
  custom_fields json NOT NULL DEFAULT '{}',
  type          text NOT NULL DEFAULT 'company' CHECK (type IN ('company', 'individual')),
  first_name    text,
  last_name     text,
  email         text,
  phone         text
);

CREATE TABLE IF NOT EXISTS crm.deals (
  id                  text PRIMARY KEY DEFAULT 'dl_' || nextval('crm.ids'),
  title               text NOT NULL,
  number              text NOT NULL DEFAULT 'DL-' || nextval('crm.ids'),
  price               numeric NOT NULL,
  status              text NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'WON', 'LOST')),
  priority            text NOT NULL DEFAULT 'MEDIUM' CHECK (priority IN ('LOW', 'MEDIUM', 'HIGH')),
  expected_close_date timestamptz,
  created_at          timestamptz NOT NULL DEFAULT now(),
  client_id           text NOT NULL REFERENCES crm.clients ON DELETE CASCADE,
  stage_id            integer NOT NULL DEFAULT 11 REFERENCES crm.stages,
  source              text,
  lead_id             text REFERENCES crm.leads,
  owner_id            integer NOT NULL REFERENCES crm.users,
  custom_fields       json NOT NULL DEFAULT '{}'
);

CREATE TABLE IF NOT EXISTS crm.contacts (
  id              text PRIMARY KEY DEFAULT 'ct_' || nextval('crm.ids'),
  first_name      text NOT NULL,
  last_name       text NOT NULL,
  email           text,
  mobile          text,
  designation     text,
  client_id       text NOT NULL REFERENCES crm.clients ON DELETE CASCADE,
  created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.invoices (
  id              text PRIMARY KEY DEFAULT 'inv_' || nextval('crm.ids'),
  number          text NOT NULL DEFAULT 'INV-' || nextval('crm.ids'),
  client_id       text NOT NULL REFERENCES crm.clients,
  status          text NOT NULL DEFAULT 'DRAFT' CHECK (status IN ('DRAFT', 'SENT', 'OVERDUE', 'PAID')),
  total           numeric NOT NULL,
  due_date        timestamptz NOT NULL DEFAULT date_trunc('day', now()) + interval '30 days',
  sales_person_id integer REFERENCES crm.users,
  created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.quotations (
  id         text PRIMARY KEY DEFAULT 'qt_' || nextval('crm.ids'),
  number     text NOT NULL DEFAULT 'QT-' || nextval('crm.ids'),
  client_id  text NOT NULL REFERENCES crm.clients,
  status     text NOT NULL DEFAULT 'DRAFT' CHECK (status IN ('DRAFT', 'SENT', 'ACCEPTED', 'REJECTED')),
  total      numeric NOT NULL,
  deal_id    text REFERENCES crm.deals,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.payments (
  id         text PRIMARY KEY DEFAULT 'pay_' || nextval('crm.ids'),
  number     text NOT NULL DEFAULT 'PAY-' || nextval('crm.ids'),
  invoice_id text NOT NULL REFERENCES crm.invoices ON DELETE CASCADE,
  client_id  text NOT NULL,  -- the invoice's; that invoice keeps the client from being deleted
  amount     numeric NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.form_responses (
  id         text PRIMARY KEY DEFAULT 'rec_' || nextval('crm.ids'),
  form_id    text NOT NULL,
  data       json NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS deals_client ON crm.deals (client_id);
CREATE INDEX IF NOT EXISTS deals_lead ON crm.deals (lead_id);
CREATE INDEX IF NOT EXISTS quotations_deal ON crm.quotations (deal_id);
CREATE INDEX IF NOT EXISTS payments_invoice ON crm.payments (invoice_id);

INSERT INTO crm.users VALUES (41, 'Amira Khan'), (42, 'Tom Okoye'), (43, 'Lena Fischer') ON CONFLICT DO NOTHING;
INSERT INTO crm.stages VALUES (1, NULL, 'New'), (2, NULL, 'Qualified'), (3, NULL, 'Unqualified'),
  (11, 1, 'Proposal'), (12, 1, 'Negotiation'), (13, 1, 'Closed'),
  (21, NULL, 'Subscriber'), (22, NULL, 'Opportunity'), (23, NULL, 'Customer') ON CONFLICT DO NOTHING;
-- Of a contact's lifecycle.
ALTER TABLE crm.contacts ADD COLUMN IF NOT EXISTS stage_id integer NOT NULL DEFAULT 21 REFERENCES crm.stages;
INSERT INTO crm.clients (id, name, tax_number, website, email, phone)
  SELECT 'cl_1', 'Nordlicht GmbH', 'DE811000', 'https://nordlicht.example', 'info@nordlicht.example', '+4930555010'
  WHERE NOT EXISTS (SELECT FROM crm.clients);

CREATE OR REPLACE FUNCTION crm.one_of(VARIADIC choices text[]) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT choices[1 + floor(random() * cardinality(choices))::integer]
$$;

CREATE OR REPLACE FUNCTION crm.in_use(client text) RETURNS boolean LANGUAGE sql VOLATILE AS $$
  SELECT EXISTS (SELECT FROM crm.deals WHERE client_id = client)
      OR EXISTS (SELECT FROM crm.contacts WHERE client_id = client)
      OR EXISTS (SELECT FROM crm.invoices WHERE client_id = client)
      OR EXISTS (SELECT FROM crm.quotations WHERE client_id = client)
$$;

-- One thing that a user does. Rows are picked with SKIP LOCKED, so that sessions never wait for each other, and
-- a row is locked before another refers to it, so that nobody deletes it meanwhile.
CREATE OR REPLACE FUNCTION crm.act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  me     integer := (SELECT id FROM crm.users ORDER BY random() LIMIT 1);
  thing  text := crm.one_of('leads', 'clients', 'deals', 'contacts', 'invoices', 'invoices', 'quotations',
                            'form_responses');
  action text;
  full_up boolean;
  target text;
  client crm.clients;
  bill   crm.invoices;
  first  text := crm.one_of('Mira', 'Omar', 'Priya', 'Tom', 'Wei');
  last   text := crm.one_of('Lind', 'Haddad', 'Nair', 'Walker', 'Zhang');
  mail   text := lower(first) || '@' || lower(last) || '.example';
  worth  numeric := 500 * (1 + floor(random() * 60));
BEGIN
  PERFORM set_config('crm.user_id', me::text, true);
  -- A full table gets nothing new, so that the sample stays small however long it runs.
  EXECUTE format('SELECT count(*) > 60 FROM crm.%I', thing) INTO full_up;
  action := CASE WHEN full_up THEN crm.one_of('edit', 'move', 'drop', 'drop')
                 ELSE crm.one_of('edit', 'move', 'move', 'drop', 'add') END || ' ' || thing;
  EXECUTE format('SELECT id FROM crm.%I ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED', thing) INTO target;
  CASE action
    WHEN 'edit leads' THEN
      UPDATE crm.leads SET value = worth, secondary_mobile = '+1555' || worth WHERE id = target;
    WHEN 'move leads' THEN
      UPDATE crm.leads SET stage_id = stage_id % 3 + 1, archived = stage_id = 2 WHERE id = target;
    WHEN 'drop leads' THEN
      DELETE FROM crm.leads WHERE id = target AND NOT EXISTS (SELECT FROM crm.deals WHERE lead_id = target);
    WHEN 'edit clients', 'move clients' THEN
      UPDATE crm.clients SET phone = '+1555' || worth WHERE id = target;
    WHEN 'drop clients' THEN DELETE FROM crm.clients WHERE id = target AND NOT crm.in_use(target);
    WHEN 'edit deals' THEN
      UPDATE crm.deals SET price = worth, priority = crm.one_of('LOW', 'MEDIUM', 'HIGH') WHERE id = target;
    WHEN 'move deals' THEN
      UPDATE crm.deals SET stage_id = stage_id + 1,
          status = CASE stage_id WHEN 12 THEN crm.one_of('WON', 'LOST') ELSE status END
        WHERE id = target AND stage_id < 13;
    WHEN 'drop deals' THEN
      DELETE FROM crm.deals WHERE id = target AND NOT EXISTS (SELECT FROM crm.quotations WHERE deal_id = target);
    WHEN 'edit contacts' THEN
      UPDATE crm.contacts SET designation = crm.one_of('CTO', 'CEO', 'Buyer') WHERE id = target;
    WHEN 'move contacts' THEN
      UPDATE crm.contacts SET stage_id = stage_id + 1 WHERE id = target AND stage_id < 23;
    WHEN 'drop contacts' THEN DELETE FROM crm.contacts WHERE id = target;
    WHEN 'edit invoices' THEN
      UPDATE crm.invoices SET total = worth WHERE id = target AND status = 'DRAFT';
    WHEN 'move invoices' THEN
      UPDATE crm.invoices SET
          status = CASE status WHEN 'DRAFT' THEN 'SENT' ELSE crm.one_of('OVERDUE', 'PAID', 'PAID') END
        WHERE id = target AND status <> 'PAID' RETURNING * INTO bill;
      IF bill.status = 'PAID' THEN
        INSERT INTO crm.payments (invoice_id, client_id, amount) VALUES (bill.id, bill.client_id, bill.total);
      END IF;
    WHEN 'drop invoices' THEN DELETE FROM crm.invoices WHERE id = target;
    WHEN 'edit quotations' THEN
      UPDATE crm.quotations SET total = worth WHERE id = target AND status = 'DRAFT';
    WHEN 'move quotations' THEN
      UPDATE crm.quotations SET
          status = CASE status WHEN 'DRAFT' THEN 'SENT' ELSE crm.one_of('ACCEPTED', 'REJECTED') END
        WHERE id = target AND status IN ('DRAFT', 'SENT');
    WHEN 'drop quotations' THEN DELETE FROM crm.quotations WHERE id = target;
    WHEN 'edit form_responses', 'move form_responses', 'drop form_responses' THEN
      DELETE FROM crm.form_responses WHERE id = target;
    ELSE PERFORM WHERE false;
  END CASE;
  IF FOUND OR full_up THEN
    RETURN;
  END IF;

  -- Add something; also where there was nothing to change.
  SELECT * INTO client FROM crm.clients ORDER BY random() LIMIT 1 FOR KEY SHARE SKIP LOCKED;
  IF thing = 'clients' OR client.id IS NULL THEN
    INSERT INTO crm.clients (name, tax_number, website, email, phone)
      VALUES (last || ' Inc.', 'TAX' || worth, 'https://' || lower(last) || '.example', mail, '+4930555010');
  ELSIF thing = 'deals' THEN
    SELECT id INTO target FROM crm.leads WHERE NOT archived ORDER BY random() LIMIT 1 FOR KEY SHARE SKIP LOCKED;
    INSERT INTO crm.deals (title, price, expected_close_date, client_id, source, lead_id, owner_id)
      VALUES (client.name || ' License', worth, date_trunc('day', now()) + interval '60 days', client.id,
              'Referral', target, me);
  ELSIF thing = 'contacts' THEN
    INSERT INTO crm.contacts (first_name, last_name, email, mobile, designation, client_id)
      VALUES (first, last, mail, '+4930555010', 'Buyer', client.id);
  ELSIF thing = 'invoices' THEN
    INSERT INTO crm.invoices (client_id, total, sales_person_id) VALUES (client.id, worth, me);
  ELSIF thing = 'quotations' THEN
    SELECT id INTO target FROM crm.deals WHERE client_id = client.id LIMIT 1 FOR KEY SHARE SKIP LOCKED;
    INSERT INTO crm.quotations (client_id, total, deal_id) VALUES (client.id, worth, target);
  ELSIF thing = 'form_responses' THEN
    INSERT INTO crm.form_responses (form_id, data) VALUES ('frm_contact', json_build_object(
      'name', first || ' ' || last, 'email', mail, 'message', 'Please call me back this week.'));
  ELSE
    INSERT INTO crm.leads (name, mobile, email, title, value, source, custom_fields, owner_id)
      VALUES (first || ' ' || last, '+4930555010', mail, 'Solar roof for two halls', worth,
              crm.one_of('Website', 'Referral', 'Trade fair'), '{"budget": "approved"}', me);
  END IF;
END $$;
