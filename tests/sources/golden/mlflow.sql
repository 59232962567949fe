CREATE TABLE "latest_metrics" (
	"key" VARCHAR(250) NOT NULL, 
	value FLOAT NOT NULL, 
	timestamp BIGINT, 
	step BIGINT NOT NULL, 
	is_nan BOOLEAN NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT latest_metric_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid), 
	CHECK (is_nan IN (0, 1))
);
INSERT INTO "latest_metrics" VALUES('loss',0.0,1795560000001,1,1,'1de98b78007c44baa6f671847f9984fa');
INSERT INTO "latest_metrics" VALUES('loss',3.0,1795560003000,3,0,'c244e7b0d4f2405aa1398a8cb749279c');
INSERT INTO "latest_metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert0',8.0,1795560003000,3,0,'c244e7b0d4f2405aa1398a8cb749279c');
INSERT INTO "latest_metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert1',0.0,1795560003000,3,0,'c244e7b0d4f2405aa1398a8cb749279c');
INSERT INTO "latest_metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert2',0.0,1795560003000,3,0,'c244e7b0d4f2405aa1398a8cb749279c');
INSERT INTO "latest_metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert3',0.0,1795560003000,3,0,'c244e7b0d4f2405aa1398a8cb749279c');
INSERT INTO "latest_metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert0',2.0,1795560003000,3,0,'c244e7b0d4f2405aa1398a8cb749279c');
INSERT INTO "latest_metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert1',3.0,1795560003000,3,0,'c244e7b0d4f2405aa1398a8cb749279c');
INSERT INTO "latest_metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert2',2.0,1795560003000,3,0,'c244e7b0d4f2405aa1398a8cb749279c');
INSERT INTO "latest_metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert3',1.0,1795560003000,3,0,'c244e7b0d4f2405aa1398a8cb749279c');
CREATE TABLE "metrics" (
	"key" VARCHAR(250) NOT NULL, 
	value FLOAT NOT NULL, 
	timestamp BIGINT NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	step BIGINT DEFAULT '0' NOT NULL, 
	is_nan BOOLEAN DEFAULT '0' NOT NULL, 
	CONSTRAINT metric_pk PRIMARY KEY ("key", timestamp, step, run_uuid, value, is_nan), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid), 
	CHECK (is_nan IN (0, 1))
);
INSERT INTO "metrics" VALUES('loss',1.797693134862315708e+308,1795560000000,'1de98b78007c44baa6f671847f9984fa',0,0);
INSERT INTO "metrics" VALUES('loss',0.0,1795560000001,'1de98b78007c44baa6f671847f9984fa',1,1);
INSERT INTO "metrics" VALUES('loss',3.5,1795560001000,'c244e7b0d4f2405aa1398a8cb749279c',1,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert0',6.0,1795560001000,'c244e7b0d4f2405aa1398a8cb749279c',1,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert1',1.0,1795560001000,'c244e7b0d4f2405aa1398a8cb749279c',1,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert2',1.0,1795560001000,'c244e7b0d4f2405aa1398a8cb749279c',1,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert3',0.0,1795560001000,'c244e7b0d4f2405aa1398a8cb749279c',1,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert0',2.0,1795560001000,'c244e7b0d4f2405aa1398a8cb749279c',1,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert1',2.0,1795560001000,'c244e7b0d4f2405aa1398a8cb749279c',1,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert2',2.0,1795560001000,'c244e7b0d4f2405aa1398a8cb749279c',1,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert3',2.0,1795560001000,'c244e7b0d4f2405aa1398a8cb749279c',1,0);
INSERT INTO "metrics" VALUES('loss',3.25,1795560002000,'c244e7b0d4f2405aa1398a8cb749279c',2,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert0',4.0,1795560002000,'c244e7b0d4f2405aa1398a8cb749279c',2,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert1',2.0,1795560002000,'c244e7b0d4f2405aa1398a8cb749279c',2,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert2',1.0,1795560002000,'c244e7b0d4f2405aa1398a8cb749279c',2,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert3',1.0,1795560002000,'c244e7b0d4f2405aa1398a8cb749279c',2,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert0',3.0,1795560002000,'c244e7b0d4f2405aa1398a8cb749279c',2,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert1',3.0,1795560002000,'c244e7b0d4f2405aa1398a8cb749279c',2,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert2',1.0,1795560002000,'c244e7b0d4f2405aa1398a8cb749279c',2,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert3',1.0,1795560002000,'c244e7b0d4f2405aa1398a8cb749279c',2,0);
INSERT INTO "metrics" VALUES('loss',3.0,1795560003000,'c244e7b0d4f2405aa1398a8cb749279c',3,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert0',8.0,1795560003000,'c244e7b0d4f2405aa1398a8cb749279c',3,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert1',0.0,1795560003000,'c244e7b0d4f2405aa1398a8cb749279c',3,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert2',0.0,1795560003000,'c244e7b0d4f2405aa1398a8cb749279c',3,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer0_expert3',0.0,1795560003000,'c244e7b0d4f2405aa1398a8cb749279c',3,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert0',2.0,1795560003000,'c244e7b0d4f2405aa1398a8cb749279c',3,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert1',3.0,1795560003000,'c244e7b0d4f2405aa1398a8cb749279c',3,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert2',2.0,1795560003000,'c244e7b0d4f2405aa1398a8cb749279c',3,0);
INSERT INTO "metrics" VALUES('moe-expert/tokens_per_expert_layer1_expert3',1.0,1795560003000,'c244e7b0d4f2405aa1398a8cb749279c',3,0);
CREATE TABLE "params" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(8000) NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT param_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid)
);
INSERT INTO "params" VALUES('model/num_experts','4','c244e7b0d4f2405aa1398a8cb749279c');
INSERT INTO "params" VALUES('top_k','2','c244e7b0d4f2405aa1398a8cb749279c');
INSERT INTO "params" VALUES('password','secret','c244e7b0d4f2405aa1398a8cb749279c');
CREATE TABLE "runs" (
	run_uuid VARCHAR(32) NOT NULL, 
	name VARCHAR(250), 
	source_type VARCHAR(20), 
	source_name VARCHAR(500), 
	entry_point_name VARCHAR(50), 
	user_id VARCHAR(256), 
	status VARCHAR(9), 
	start_time BIGINT, 
	end_time BIGINT, 
	source_version VARCHAR(50), 
	lifecycle_stage VARCHAR(20), 
	artifact_uri VARCHAR(200), 
	experiment_id INTEGER, deleted_time BIGINT, 
	CONSTRAINT run_pk PRIMARY KEY (run_uuid), 
	CONSTRAINT runs_lifecycle_stage CHECK (lifecycle_stage IN ('active', 'deleted')), 
	CONSTRAINT source_type CHECK (source_type IN ('NOTEBOOK', 'JOB', 'LOCAL', 'UNKNOWN', 'PROJECT')), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id), 
	CHECK (status IN ('SCHEDULED', 'FAILED', 'FINISHED', 'RUNNING', 'KILLED'))
);
INSERT INTO "runs" VALUES('c244e7b0d4f2405aa1398a8cb749279c','first try','UNKNOWN','','','unknown','FINISHED',1795560000000,1795560004000,'','active','/tmp/runs/mlruns/0/c244e7b0d4f2405aa1398a8cb749279c/artifacts',0,NULL);
INSERT INTO "runs" VALUES('1de98b78007c44baa6f671847f9984fa','dense','UNKNOWN','','','unknown','RUNNING',1795560000001,NULL,'','active','/tmp/runs/mlruns/0/1de98b78007c44baa6f671847f9984fa/artifacts',0,NULL);
CREATE INDEX index_metrics_run_uuid ON metrics (run_uuid);
CREATE INDEX index_params_run_uuid ON params (run_uuid);
CREATE INDEX index_metrics_run_uuid_key_step ON metrics (run_uuid, "key", step);
