-- A sample of a CRM like Workestra: sales, recruiting, projects, finance and support; nothing of Postrider in it.
CREATE SCHEMA IF NOT EXISTS crm;
CREATE SEQUENCE IF NOT EXISTS crm.ids START 1001;

CREATE TABLE IF NOT EXISTS crm.users (id text PRIMARY KEY, workspace_id text NOT NULL, name text NOT NULL);

CREATE TABLE IF NOT EXISTS crm.contacts (
  id text PRIMARY KEY DEFAULT 'con_' || nextval('crm.ids'), workspace_id text NOT NULL,
  first_name text NOT NULL, last_name text NOT NULL, email text NOT NULL, company text,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS crm.deals (
  id text PRIMARY KEY DEFAULT 'deal_' || nextval('crm.ids'), workspace_id text NOT NULL,
  title text NOT NULL, value numeric NOT NULL, stage text NOT NULL DEFAULT 'Lead',
  status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'won', 'lost')),
  contact_id text REFERENCES crm.contacts, created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS crm.activities (
  id text PRIMARY KEY DEFAULT 'act_' || nextval('crm.ids'), workspace_id text NOT NULL,
  kind text NOT NULL, subject text NOT NULL, contact_id text REFERENCES crm.contacts,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.jobs (
  id text PRIMARY KEY DEFAULT 'job_' || nextval('crm.ids'), workspace_id text NOT NULL,
  title text NOT NULL, department text NOT NULL, location text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS crm.candidates (
  id text PRIMARY KEY DEFAULT 'cand_' || nextval('crm.ids'), workspace_id text NOT NULL,
  first_name text NOT NULL, last_name text NOT NULL, email text NOT NULL,
  job_id text NOT NULL REFERENCES crm.jobs ON DELETE CASCADE, stage text NOT NULL DEFAULT 'applied',
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS crm.applications (
  id text PRIMARY KEY DEFAULT 'app_' || nextval('crm.ids'), workspace_id text NOT NULL, job_id text NOT NULL,
  candidate_id text NOT NULL REFERENCES crm.candidates ON DELETE CASCADE, source text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS crm.interviews (
  id text PRIMARY KEY DEFAULT 'int_' || nextval('crm.ids'), workspace_id text NOT NULL, job_id text NOT NULL,
  candidate_id text NOT NULL REFERENCES crm.candidates ON DELETE CASCADE, scheduled_at timestamptz NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.cycles (
  id text PRIMARY KEY DEFAULT 'cyc_' || nextval('crm.ids'), workspace_id text NOT NULL,
  name text NOT NULL, starts_on date NOT NULL, ends_on date NOT NULL,
  status text NOT NULL DEFAULT 'planned' CHECK (status IN ('planned', 'active', 'done'))
);
CREATE TABLE IF NOT EXISTS crm.tasks (
  id text PRIMARY KEY DEFAULT 'task_' || nextval('crm.ids'), workspace_id text NOT NULL,
  title text NOT NULL, status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'done')),
  cycle_id text REFERENCES crm.cycles, completed_at timestamptz, created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.invoices (
  id text PRIMARY KEY DEFAULT 'inv_' || nextval('crm.ids'), workspace_id text NOT NULL,
  number text NOT NULL DEFAULT to_char(now(), 'YYYY-') || nextval('crm.ids'),
  contact_id text REFERENCES crm.contacts, total numeric NOT NULL, currency text NOT NULL DEFAULT 'EUR',
  status text NOT NULL DEFAULT 'sent' CHECK (status IN ('sent', 'overdue', 'paid')),
  due_on date NOT NULL DEFAULT current_date + 30, created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS crm.expenses (
  id text PRIMARY KEY DEFAULT 'exp_' || nextval('crm.ids'), workspace_id text NOT NULL,
  category text NOT NULL, amount numeric NOT NULL, currency text NOT NULL DEFAULT 'EUR',
  spent_on date NOT NULL DEFAULT current_date, created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS crm.tickets (
  id text PRIMARY KEY DEFAULT 'tick_' || nextval('crm.ids'), workspace_id text NOT NULL, subject text NOT NULL,
  status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'resolved')),
  priority text NOT NULL DEFAULT 'normal' CHECK (priority IN ('normal', 'high', 'urgent')),
  contact_id text REFERENCES crm.contacts, created_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO crm.users VALUES ('usr_1', 'ws_berlin', 'Jonas Weber'), ('usr_2', 'ws_berlin', 'Mia Berg'),
  ('usr_3', 'ws_lisbon', 'Rui Costa') ON CONFLICT DO NOTHING;
INSERT INTO crm.contacts (id, workspace_id, first_name, last_name, email, company)
  SELECT 'con_1', 'ws_berlin', 'Mira', 'Lind', 'mira@nordlicht.example', 'Nordlicht'
  WHERE NOT EXISTS (SELECT FROM crm.contacts);

CREATE OR REPLACE FUNCTION crm.one_of(VARIADIC choices text[]) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT choices[1 + floor(random() * cardinality(choices))::integer]
$$;

-- One thing that a user does. Rows are picked with SKIP LOCKED, so that sessions never wait for each other, and
-- a row is locked before another refers to it, so that nobody deletes it meanwhile.
CREATE OR REPLACE FUNCTION crm.act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  me     crm.users;
  thing  text := crm.one_of('contacts', 'deals', 'deals', 'activities', 'candidates', 'tasks', 'cycles', 'invoices',
                            'tickets', 'tickets', 'jobs', 'expenses', 'interviews');
  target text;
  full_up boolean;
  dice   float := random();
  first  text := crm.one_of('Mira', 'Ilse', 'Rui', 'Aisha', 'Kenji');
  last   text := crm.one_of('Lind', 'Berg', 'Costa', 'Rahman', 'Mori');
  firm   text := crm.one_of('Nordlicht', 'Nordwind', 'Atlas', 'Solaria');
  contact text;
  job    text;
  worth  integer := 100 * (1 + floor(random() * 90));
BEGIN
  SELECT * INTO me FROM crm.users ORDER BY random() LIMIT 1;
  PERFORM set_config('crm.user_id', me.id, true);
  -- Old rows are cleaned up now and then, so that the sample stays small however long it runs. No event tells of
  -- it.
  IF random() < 0.2 AND thing NOT IN ('contacts', 'jobs', 'candidates', 'cycles') THEN
    EXECUTE format('DELETE FROM crm.%1$I WHERE id IN (SELECT id FROM crm.%1$I
      ORDER BY length(id) DESC, id DESC OFFSET 40 FOR UPDATE SKIP LOCKED)', thing);
  END IF;

  EXECUTE format('SELECT count(*) > 60 FROM crm.%I', thing) INTO full_up;
  IF full_up THEN
    dice := 0.35 + 0.65 * dice;
  END IF;

  EXECUTE format('SELECT id FROM crm.%I WHERE workspace_id = $1
    ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED', thing) INTO target USING me.workspace_id;
  CASE
    WHEN dice < 0.35 THEN PERFORM WHERE false;
    WHEN thing = 'contacts' AND dice < 0.6 THEN
      UPDATE crm.contacts SET company = firm WHERE id = target;
    WHEN thing = 'contacts' THEN
      -- The row is locked, so what refers to it now is all there can be.
      DELETE FROM crm.contacts WHERE id = target
        AND NOT EXISTS (SELECT FROM crm.deals WHERE contact_id = target)
        AND NOT EXISTS (SELECT FROM crm.activities WHERE contact_id = target)
        AND NOT EXISTS (SELECT FROM crm.invoices WHERE contact_id = target)
        AND NOT EXISTS (SELECT FROM crm.tickets WHERE contact_id = target);
    WHEN thing = 'deals' AND dice < 0.5 THEN
      UPDATE crm.deals SET value = worth WHERE id = target AND status = 'open';
    WHEN thing = 'deals' AND dice < 0.8 THEN
      UPDATE crm.deals SET stage = CASE stage WHEN 'Lead' THEN 'Proposal' ELSE 'Negotiation' END
        WHERE id = target AND status = 'open' AND stage <> 'Negotiation';
    WHEN thing = 'deals' THEN
      UPDATE crm.deals SET status = crm.one_of('won', 'won', 'lost') WHERE id = target AND status = 'open';
    WHEN thing = 'candidates' THEN
      UPDATE crm.candidates SET
          stage = CASE stage WHEN 'applied' THEN 'interview' ELSE crm.one_of('hired', 'rejected') END
        WHERE id = target AND stage IN ('applied', 'interview');
    WHEN thing = 'tasks' AND dice < 0.6 THEN
      UPDATE crm.tasks SET title = 'Prepare the ' || crm.one_of('proposal', 'final proposal', 'kick-off')
        WHERE id = target AND status = 'open';
    WHEN thing = 'tasks' THEN
      UPDATE crm.tasks SET status = 'done', completed_at = now() WHERE id = target AND status = 'open';
    WHEN thing = 'cycles' THEN
      UPDATE crm.cycles SET status = CASE status WHEN 'planned' THEN 'active' ELSE 'done' END
        WHERE id = target AND status <> 'done';
      IF NOT FOUND THEN
        DELETE FROM crm.cycles WHERE id = target AND NOT EXISTS (SELECT FROM crm.tasks WHERE cycle_id = target);
      END IF;
    WHEN thing = 'invoices' THEN
      UPDATE crm.invoices SET status = CASE WHEN dice < 0.55 AND status = 'sent' THEN 'overdue' ELSE 'paid' END
        WHERE id = target AND status <> 'paid';
    WHEN thing = 'tickets' AND dice < 0.5 THEN
      UPDATE crm.tickets SET priority = CASE priority WHEN 'normal' THEN 'high' ELSE 'urgent' END
        WHERE id = target AND status = 'open' AND priority <> 'urgent';
    WHEN thing = 'tickets' AND dice < 0.7 THEN
      UPDATE crm.tickets SET subject = 'Login fails after ' || crm.one_of('the update', 'the move', 'a restart')
        WHERE id = target AND status = 'open';
    WHEN thing = 'tickets' THEN
      UPDATE crm.tickets SET status = 'resolved' WHERE id = target AND status = 'open';
    WHEN thing = 'jobs' THEN
      -- A job that is filled goes, and its candidates with it.
      DELETE FROM crm.jobs WHERE id = target AND (SELECT count(*) FROM crm.jobs) > 8;
    ELSE PERFORM WHERE false;
  END CASE;
  IF FOUND OR full_up THEN
    RETURN;
  END IF;

  -- Add something; also where there was nothing to change. What it belongs to may be missing or locked.
  SELECT id INTO contact FROM crm.contacts WHERE workspace_id = me.workspace_id
    ORDER BY random() LIMIT 1 FOR KEY SHARE SKIP LOCKED;
  SELECT id INTO job FROM crm.jobs WHERE workspace_id = me.workspace_id
    ORDER BY random() LIMIT 1 FOR KEY SHARE SKIP LOCKED;
  CASE thing
    WHEN 'deals' THEN
      INSERT INTO crm.deals (workspace_id, title, value, contact_id)
        VALUES (me.workspace_id, firm || ' rollout', worth, contact);
    WHEN 'activities' THEN
      INSERT INTO crm.activities (workspace_id, kind, subject, contact_id)
        VALUES (me.workspace_id, crm.one_of('call', 'email', 'meeting'), 'Intro with ' || firm, contact);
    WHEN 'cycles', 'tasks' THEN
      SELECT id INTO target FROM crm.cycles WHERE workspace_id = me.workspace_id AND status <> 'done'
        ORDER BY random() LIMIT 1 FOR KEY SHARE SKIP LOCKED;
      IF thing = 'tasks' THEN
        INSERT INTO crm.tasks (workspace_id, title, cycle_id) VALUES (me.workspace_id, 'Prepare the demo', target);
      ELSE
        INSERT INTO crm.cycles (workspace_id, name, starts_on, ends_on)
          VALUES (me.workspace_id, 'Sprint ' || nextval('crm.ids'), current_date + 3, current_date + 14);
      END IF;
    WHEN 'invoices' THEN
      INSERT INTO crm.invoices (workspace_id, contact_id, total) VALUES (me.workspace_id, contact, worth);
    WHEN 'expenses' THEN
      INSERT INTO crm.expenses (workspace_id, category, amount)
        VALUES (me.workspace_id, crm.one_of('travel', 'software', 'meals'), worth / 10);
    WHEN 'tickets' THEN
      INSERT INTO crm.tickets (workspace_id, subject, contact_id)
        VALUES (me.workspace_id, crm.one_of('Login fails', 'Export is empty', 'Invoice missing'), contact);
    WHEN 'candidates', 'interviews' THEN
      SELECT id INTO target FROM crm.candidates WHERE job_id = job AND stage IN ('applied', 'interview')
        ORDER BY random() LIMIT 1 FOR KEY SHARE SKIP LOCKED;
      IF thing = 'interviews' AND target IS NOT NULL THEN
        INSERT INTO crm.interviews (workspace_id, job_id, candidate_id, scheduled_at)
          VALUES (me.workspace_id, job, target, date_trunc('hour', now()) + interval '5 days');
      ELSIF job IS NOT NULL THEN
        INSERT INTO crm.candidates (workspace_id, first_name, last_name, email, job_id)
          VALUES (me.workspace_id, first, last, lower(first || '@' || last) || '.example', job)
          RETURNING id INTO target;
        INSERT INTO crm.applications (workspace_id, job_id, candidate_id, source)
          VALUES (me.workspace_id, job, target, crm.one_of('website', 'referral', 'agency'));
      END IF;
    WHEN 'jobs' THEN
      INSERT INTO crm.jobs (workspace_id, title, department, location)
        VALUES (me.workspace_id, crm.one_of('Support engineer', 'Account manager'), 'Support',
                crm.one_of('Berlin', 'Lisbon'));
    ELSE
      INSERT INTO crm.contacts (workspace_id, first_name, last_name, email, company)
        VALUES (me.workspace_id, first, last, lower(first || '@' || last) || '.example', firm);
  END CASE;
END $$;
