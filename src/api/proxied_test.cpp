#include "api/proxied.h"

#include <gtest/gtest.h>

namespace lathe::api {
namespace {

TEST(CacheSalt, IsTheVersionInFrontOfTheClientsOwn) {
  EXPECT_EQ(with_cache_salt(R"({"prompt":"a","seed":18446744073709551615,"top_p":0.1})", 7),
            R"({"prompt":"a","seed":18446744073709551615,"top_p":0.1,"cache_salt":"lathe-v7"})");
  EXPECT_EQ(with_cache_salt(R"({"cache_salt":"mine","prompt":"a"})", 7),
            R"({"cache_salt":"lathe-v7:mine","prompt":"a"})");
  EXPECT_EQ(with_cache_salt(R"({"cache_salt":null})", 0), R"({"cache_salt":"lathe-v0"})");
}

TEST(CacheSalt, LeavesWhatTheServerWillRefuse) {
  for (const char* body : {"", "[1]", "{\"a\":", R"({"cache_salt":3})", R"({"cache_salt":""})"})
    EXPECT_EQ(with_cache_salt(body, 7), body);
}

TEST(Conversation, IsWhatACorrectionNeeds) {
  EXPECT_EQ(conversation_of(R"({"model":"m","messages":[{"role":"user","content":"q"}],"tools":[{"a":1}],"seed":1})"),
            R"({"messages":[{"role":"user","content":"q"}],"tools":[{"a":1}],"chat_template_kwargs":null})");
  EXPECT_TRUE(conversation_of(R"({"messages":[],"chat_template":null,"add_generation_prompt":true,"documents":[]})"));
}

TEST(Conversation, IsNoneIfTheTemplateCouldNotShowItAgain) {
  for (const char* body : {"no json", "{}", R"({"messages":"q"})", R"({"messages":[],"chat_template":"{{ 1 }}"})",
                           R"({"messages":[],"continue_final_message":true})", R"({"messages":[],"documents":[{}]})",
                           R"({"messages":[],"add_generation_prompt":false})"})
    EXPECT_FALSE(conversation_of(body)) << body;
}

TEST(WholeAnswer, IsTheFirstChoice) {
  const auto answer = answer_of(
      R"({"id":"c","choices":[{"index":1,"message":{"content":"b"}},{"index":0,"message":{"role":"assistant","content":"a"}}]})");
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->id, "c");
  EXPECT_EQ(answer->message_json, R"({"role":"assistant","content":"a"})");
  for (const char* body : {"", "{}", R"({"id":"c","choices":[]})", R"({"id":"c","choices":[{"index":0,"text":"x"}]})",
                           R"({"error":{}})", R"({"id":1,"choices":[{"index":0,"message":{}}]})"})
    EXPECT_FALSE(answer_of(body)) << body;
}

const std::string kStream =
    "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n"
    ": a comment\n\n"
    "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"reasoning\":\"hm\"}}]}\r\n\r\n"
    "data: "
    "{\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"µ\"}},{\"index\":1,\"delta\":{\"content\":\"no\"}"
    "}]}\n\n"
    "data: "
    "{\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"m\",\"tool_calls\":[{\"index\":0,\"id\":\"t\","
    "\"type\":"
    "\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"x\\\"\"}}]}}]}\n\n"
    "data: "
    "{\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\":1}"
    "\"}}]}}]}\n\n"
    "data: {\"id\":\"c\",\"choices\":[],\"usage\":{}}\n\n";
const char* const kMessage =
    R"({"role":"assistant","content":"µm","reasoning":"hm","tool_calls":[{"function":{"name":"f","arguments":"{\"x\":1}"},"id":"t","type":"function"}]})";

TEST(StreamedAnswer, IsWholeHoweverTheStreamIsCut) {
  const std::string stream = kStream + "data: [DONE]\n\n";
  for (const size_t size : {size_t{1}, size_t{7}, size_t{100}, stream.size()}) {
    StreamedAnswer reader;
    int answers = 0;
    for (size_t at = 0; at < stream.size(); at += size) {
      const auto answer = reader.read(std::string_view(stream).substr(at, size));
      if (!answer) continue;
      ++answers;
      EXPECT_EQ(answer->id, "c");
      EXPECT_EQ(answer->message_json, kMessage);
    }
    EXPECT_EQ(answers, 1) << size;
  }
}

TEST(StreamedAnswer, IsNoneWithoutTheStreamsEnd) {
  StreamedAnswer reader;
  EXPECT_FALSE(reader.read(kStream));
  EXPECT_FALSE(reader.read("data: [DO"));
  EXPECT_TRUE(reader.read("NE]\n"));
  EXPECT_FALSE(reader.read("data: [DONE]\n\n")) << "once";
  StreamedAnswer nameless;
  EXPECT_FALSE(nameless.read("data: {\"choices\":[{}]}\n\ndata: [DONE]\n\n"));
}

}  // namespace
}  // namespace lathe::api
